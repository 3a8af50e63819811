"""An adapted model, or the frozen CLIP in it, as a fitted method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...method.class_texts import ClassSet, load_tokenizer
from ...method.features import evaluating
from ...method.losses import clip_logits
from ...tuner import adapted_clip
from ..task import ClassTexts, ImageSet


class FittedAdapter:
    """The logits of the active adapter for any classes, however they are written.

    Fused or class logits are chosen, as in the model, by which classes they are (`ClassTexts.names`), and not by how
    they are written: a misspelt name of a trained class is still that class. Texts longer than CLIP's context are cut.

    Args:
        model (`PeftModel` or `ANPromptCLIPModel`): with an active adapter; it is left as it is.
        zero_shot (`bool`): switch the adapter off: the frozen CLIP.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active.
    """

    def __init__(self, model: Any, zero_shot: bool = False) -> None:
        self.model, self.zero_shot = model, zero_shot
        self.clip = adapted_clip(model)
        config = self.clip.active_config
        self.tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_name_or_path)
        self._kept: WeakKeyDictionary[ImageSet, tuple[Tensor, Tensor | None]] = WeakKeyDictionary()

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits of n images for C classes, `[n, C]` on the CPU; the images' features are kept."""
        with self._answering():
            if images not in self._kept:
                self._kept[images] = self._encode(images)
            image, prototype = self._kept[images]
            text = self.clip.text_embeds(ClassSet(classes.written, classes.templates, self._tokens(classes.texts)))
            scale = self.clip.logit_scale.to(text).exp()
            by_class = clip_logits(image, text, scale)
            if prototype is None:
                return by_class.cpu()
            by_prototype = clip_logits(prototype, text, scale)
            return self._chosen(by_class, by_prototype, classes.names).cpu()

    def _tokens(self, texts: list[str]) -> Tensor:
        context = self.clip.config.text_config.max_position_embeddings
        return self.tokenizer(texts, padding=True, truncation=True, max_length=context, return_tensors="pt").input_ids

    def _encode(self, images: ImageSet) -> tuple[Tensor, Tensor | None]:
        """Return the normalised features of all images, and their prototypes if there are any, each `[n, d]`."""
        outputs = [self.model(pixel_values=batch.to(self.clip.device)) for batch in images.batches()]
        features = torch.cat([output.image_embeds for output in outputs])
        if outputs[0].prototype_embeds is None:
            return features, None
        return features, torch.cat([output.prototype_embeds for output in outputs])

    def _chosen(self, by_class: Tensor, by_prototype: Tensor, names: tuple[str, ...]) -> Tensor:
        config = self.clip.active_config
        choice = config.inference_logits
        if choice == "auto":
            choice = "fused" if set(names) <= set(config.class_names) else "class"
        fused = config.alpha * by_class + (1 - config.alpha) * by_prototype
        return {"class": by_class, "prototype": by_prototype, "fused": fused}[choice]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        switched = self.model.disable_adapter() if self.zero_shot else nullcontext()
        with torch.no_grad(), evaluating(self.model), switched:
            yield
