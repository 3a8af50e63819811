"""An adapted model, or the frozen CLIP in it, as a fitted method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from ..method.class_texts import ClassSet, own_tokenizer, tokenize
from ..method.config import LogitsKind
from ..method.features import evaluating
from ..method.noise import clean_features
from ..tuner import adapted_clip
from .backbone import CachedFeatures
from .task import ClassTexts, ImageSet


class FittedAdapter:
    """The logits of the active adapter for any classes, however they are written.

    Which logits they are is chosen, as in the model, by which classes they are (`ClassTexts.names`), and not by how
    they are written: a misspelt name of a trained class is still that class. Without the ensemble (`frozen_share=0`)
    that is MMRL's choice, for which classes of other data (`ClassTexts.other_data`) are others, whatever their names.
    Texts longer than CLIP's context are cut.

    Args:
        model (`PeftModel` or `AdaptedModel`): with an active adapter; it is left as it is.
        zero_shot (`bool`): switch the adapter off: the frozen CLIP.
        frozen (*optional*): the same CLIP's [`~anprompt_peft.evaluation.peers.protocol.Fitted`], if what it has
            encoded is to be shared among adapters.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active.
    """

    def __init__(self, model: Any, zero_shot: bool = False, frozen: Any = None) -> None:
        self.model, self.zero_shot = model, zero_shot
        self.clip = adapted_clip(model)
        config = self.clip.active_config
        self.tokenizer = own_tokenizer(config)
        self._given = frozen
        self._seen = CachedFeatures(self._encode)

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits of n images for C classes, `[n, C]` on the CPU; the images' features are cached."""
        ids = tokenize(classes.texts, self.tokenizer, self.clip.config, truncate=True)
        with self._answering():
            image, prototype = self._seen.of(images).chunk(2, dim=-1)
            asked = ClassSet(classes.written, classes.templates, ids)
            text = self.clip.text_embeds(asked)
            kind = "class" if self.zero_shot else self._kind(classes)
            frozen = self._frozen_logits(images, classes, asked).to(text) if kind == "ensemble" else None
            logits = getattr(self.clip.score_features(text, image, prototype, frozen), f"logits_{kind}")
            if not self.zero_shot and self.clip.has_classifier:
                logits = self.clip.join_classifier(logits, classes.names, self.frozen.image_features(images))
            return logits.cpu()

    @property
    def saved(self) -> dict[str, Tensor]:
        """The adapter's tensors, as PEFT saves them."""
        return get_peft_model_state_dict(self.model)

    def image_features(self, images: ImageSet) -> Tensor:
        """Return the normalised features of n images, `[n, d]`."""
        with self._answering():
            return self._seen.of(images).chunk(2, dim=-1)[0]

    @cached_property
    def frozen(self) -> Any:
        """The frozen CLIP as a fitted method: the one that was given, else one of its own."""
        return self._given or FittedAdapter(self.model, zero_shot=True)

    def _frozen_logits(self, images: ImageSet, classes: ClassTexts, asked: ClassSet) -> Tensor:
        """Return the frozen CLIP's logits `[n, C]`, of denoised texts if the adapter has a denoiser."""
        head = self.clip.head
        if head.denoiser(head.adapter) is None:
            return self.frozen.logits(images, classes)
        text = clean_features(self.clip, asked, head.adapter)
        return self.clip.score_features(text, self.frozen.image_features(images), None).logits_class

    def _kind(self, classes: ClassTexts) -> LogitsKind:
        config = self.clip.active_config
        if classes.other_data and config.inference_logits == "auto" and config.frozen_share == 0:
            return "class"
        return config.logits_for(classes.names)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Return normalised features and prototypes side by side, `[m, 2 d]`; without prompts twice the former."""
        seen = self.model(pixel_values=pixels.to(self.clip.device, self.clip.dtype))
        prototype = seen.image_embeds if seen.prototype_embeds is None else seen.prototype_embeds
        return torch.cat([seen.image_embeds, prototype], dim=-1)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        switched = self.model.disable_adapter() if self.zero_shot else nullcontext()
        with torch.no_grad(), evaluating(self.model), switched:
            yield
