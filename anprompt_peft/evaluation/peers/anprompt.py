"""ANPrompt and, without noise prompts and WALoss, MMRL, through this package's own adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from ...method.class_texts import ClassSet
from ...method.config import ANPromptConfig
from ...method.features import normalize
from ...method.losses import clip_logits
from ...tuner import adapted_clip
from ..backbone import Backbone, KeptFeatures
from ..task import ClassTexts, ImageSet
from .training import Batch, Recipe, seeded, train


@dataclass(frozen=True)
class ANPrompt:
    """Anti-noise prompts (arXiv 2508.04677), trained as [`~anprompt_peft.training.ANPromptTrainer`] does.

    Args:
        recipe (`Recipe`): of the training.
        config (`Mapping`): fields of [`ANPromptConfig`], without `class_names` and `template`, which are the task's.
            `noise_seed` is the run's seed by default.
        random_noise (`bool`): frozen random unit vectors in place of the noise prompts, a control.
        text_chunk (`int`, *optional*): class texts that are encoded at a time, to bound the memory of many classes.
    """

    recipe: Recipe
    config: Mapping[str, Any] = field(default_factory=dict)
    random_noise: bool = False
    text_chunk: int | None = None

    def configuration(self, backbone: Backbone, classes: ClassTexts, seed: int) -> ANPromptConfig:
        """Return the adapter's configuration for some classes."""
        own: dict[str, Any] = {"class_names": list(classes.names), "template": list(classes.templates)}
        if set(own) & set(self.config):
            raise ValueError(f"config must not set {sorted(set(own) & set(self.config))}: they are the task's.")
        settings = {"noise_seed": seed, "tokenizer_name_or_path": backbone.processor.tokenizer, **self.config}
        return ANPromptConfig(**settings, **own)

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> PromptedCLIP:
        """Train an adapter on a copy of CLIP."""
        with seeded(seed):
            model: Any = get_peft_model(backbone.copy(), self.configuration(backbone, classes, seed)).train()
            clip = adapted_clip(model)
            if self.random_noise:
                for prompts in clip.head.anprompt_noise_prompts.values():
                    prompts.copy_(normalize(torch.randn(prompts.shape).to(prompts)))
        clip.set_savings(replace(clip.savings, text_chunk=self.text_chunk))

        def loss(batch: Batch) -> Tensor:
            return model(pixel_values=batch.pixels, labels=batch.labels).loss

        train([each for each in model.parameters() if each.requires_grad], loss, shots, self.recipe, seed)
        return PromptedCLIP(backbone, model.eval())


class PromptedCLIP:
    """A CLIP with a trained adapter, for any classes.

    Args:
        backbone (`Backbone`): the CLIP that it was made of.
        model (`PeftModel`): the adapted copy, in evaluation mode.
    """

    def __init__(self, backbone: Backbone, model: Any) -> None:
        self.backbone, self.model, self.clip = backbone, model, adapted_clip(model)
        self._seen = KeptFeatures(self._encode)

    @torch.no_grad()
    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits `[n, C]` that `inference_logits` names.

        `auto` goes by the names of the classes, not by how they are written.
        """
        config, scale = self.clip.active_config, self.clip.logit_scale.exp()
        tokens = self.backbone.tokens(classes.texts)
        text = self.clip.text_embeds(ClassSet(classes.written, classes.templates, tokens))
        image, prototype = self._seen.of(images).chunk(2, dim=-1)
        by_class, by_prototype = clip_logits(image, text, scale), clip_logits(prototype, text, scale)
        choice: str = config.inference_logits
        if choice == "auto":
            choice = "fused" if set(classes.names) <= set(config.class_names) else "class"
        share = {"class": 1.0, "prototype": 0.0, "fused": config.alpha}[choice]
        return (share * by_class + (1 - share) * by_prototype).cpu()

    def _encode(self, pixels: Tensor) -> Tensor:
        """Return class token features and prototypes side by side, `[m, 2 d]`; without prompts twice the former."""
        seen = self.model(pixel_values=pixels.to(self.clip.device, self.clip.dtype))
        prototype = seen.image_embeds if seen.prototype_embeds is None else seen.prototype_embeds
        return torch.cat([seen.image_embeds, prototype], dim=-1)
