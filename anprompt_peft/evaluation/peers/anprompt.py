"""ANPrompt and, without noise prompts and WALoss, MMRL, through this package's own adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import get_peft_model

from ...method.config import ANPromptConfig
from ...method.features import normalize
from ...tuner import adapted_clip
from ..adapter import FittedAdapter
from ..backbone import Backbone
from ..task import BATCH, ClassTexts, ImageSet
from .training import LossOfBatch, Recipe, seeded, train
from .zero_shot import FrozenCLIP

BARE: Mapping[str, Any] = {"classifier_weight": 0.0}
"""What a method has unless its settings say otherwise: MMRL and older settings have no classifier."""


@dataclass(frozen=True)
class ANPrompt:
    """Anti-noise prompts (arXiv 2508.04677), trained as [`~anprompt_peft.training.ANPromptTrainer`] does.

    The configuration has the task's class names and templates, by default the run's seed as `noise_seed`, and an
    anchored classifier only if it gives one a weight.
    """

    recipe: Recipe
    config: Mapping[str, Any] = field(default_factory=dict)  # further fields of ANPromptConfig
    random_noise: bool = False  # frozen random unit vectors in place of the noise prompts, a control
    text_chunk: int | None = None  # class texts encoded at a time, to bound the memory of many classes

    def configuration(self, backbone: Backbone, classes: ClassTexts, seed: int) -> ANPromptConfig:
        """Return the adapter's configuration for some classes."""
        own: dict[str, Any] = {"class_names": list(classes.names), "template": list(classes.templates)}
        if set(own) & set(self.config):
            raise ValueError(f"config must not set {sorted(set(own) & set(self.config))}: they are the task's.")
        tokenizer = backbone.processor.tokenizer
        settings = {"noise_seed": seed, "tokenizer_name_or_path": tokenizer, **BARE, **self.config}
        return ANPromptConfig(**settings, **own)

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedAdapter:
        """Train an adapter on a copy of CLIP."""
        with seeded(seed):
            model = self.adapt(backbone, classes, seed)
        clip = adapted_clip(model)
        clip.set_savings(replace(clip.savings, text_chunk=self.text_chunk))
        loss = self.loss_of(model.train(), backbone, classes, seed)
        train([each for each in model.parameters() if each.requires_grad], loss, shots, self.recipe, seed)
        if clip.active_config.classifier_weight:
            batches = zip(shots.batches(), shots.labels.split(BATCH), strict=True)
            seen = ({"pixel_values": each.to(clip.device, clip.dtype), "labels": labels} for each, labels in batches)
            clip.fit_classifier(seen, seed=seed)
        return FittedAdapter(model.eval(), frozen=FrozenCLIP(backbone))

    def adapt(self, backbone: Backbone, classes: ClassTexts, seed: int) -> Any:
        """Return a copy of CLIP with a new adapter; torch's random numbers are seeded."""
        model: Any = get_peft_model(backbone.copy(), self.configuration(backbone, classes, seed))
        if self.random_noise:
            for prompts in adapted_clip(model).head.anprompt_noise_prompts.values():
                prompts.copy_(normalize(torch.randn(prompts.shape).to(prompts)))
        return model

    def loss_of(self, model: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        """Return what is minimised: the adapter's own loss."""
        return lambda batch: model(pixel_values=batch.pixels, labels=batch.labels).loss
