"""Controls that the tables of docs/embedded.md have beside the methods of the package, for `anprompt benchmark`.

Trials whose questions are closed, and whose tables say so, are in commit be8cf47.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anprompt_peft.evaluation.adapter import FittedAdapter
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers.anprompt import ANPrompt
from anprompt_peft.evaluation.peers.equipped import Equipped
from anprompt_peft.evaluation.peers.lora import LoRA
from anprompt_peft.evaluation.peers.training import LossOfBatch
from anprompt_peft.evaluation.task import ClassTexts, Fitted, ImageSet
from anprompt_peft.method.features import frozen_text_features, normalize
from anprompt_peft.method.rephrase import draw_rephrased, vocabulary
from anprompt_peft.tuner import adapted_clip


@dataclass(frozen=True)
class NoisyLoRA(LoRA):
    """LoRA that must also give the frozen features of clean texts for rephrased ones, as ANPrompt's default does.

    Args:
        weight (`float`): of that loss, one minus the mean cosine similarity.
        drawn (`int`): rephrased texts of a step; texts about other words, which keep their features, are half as many.
    """

    weight: float = 10.0
    drawn: int = 16

    def loss_of(self, clip: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        own, rng = super().loss_of(clip, backbone, classes, seed), random.Random(f"steps {seed}")
        clean, words = backbone.class_features(classes), vocabulary(backbone.processor.tokenizer)

        def similarity() -> Tensor:
            texts, rows, others = draw_rephrased(classes.written, classes.templates, words, self.drawn, rng)
            frozen = frozen_text_features(backbone.clip, backbone.tokens(others))
            encoded = clip.get_text_features(input_ids=backbone.tokens([*texts, *others])).pooler_output
            return 1 - (normalize(encoded) * torch.cat([clean[rows], frozen])).sum(dim=-1).mean()

        return lambda batch: own(batch) + self.weight * similarity()


@dataclass(frozen=True)
class HalfFrozen:
    """[`Equipped`] with a share alone, under the name and the settings that the keys of older cells have.

    Args:
        of (`str`): the method's name.
        settings (`Mapping`): its settings.
        share (`float`): of the frozen CLIP's logits, for classes that the method was not trained on.
    """

    of: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.5

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Fitted:
        return Equipped(self.of, self.settings, self.share).fit(backbone, shots, classes, seed)


@dataclass(frozen=True)
class TrainedNoise(ANPrompt):
    """ANPrompt whose noise prompts are where tokens start: they are trained too, in the tokens' space.

    Args:
        rate (`float`): their learning rate, as a multiple of the recipe's.
    """

    rate: float = 1.0

    def adapt(self, backbone: Backbone, classes: ClassTexts, seed: int) -> Any:
        model = super().adapt(backbone, classes, seed)
        noise = adapted_clip(model).head.anprompt_noise_prompts["default"]
        model.register_parameter("trained_noise", nn.Parameter(noise / self.rate))
        return model

    def loss_of(self, model: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        own = super().loss_of(model, backbone, classes, seed)

        def loss(batch: Any) -> Tensor:
            self._put(model, model.trained_noise)
            return own(batch)

        return loss

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedAdapter:
        fitted = super().fit(backbone, shots, classes, seed)
        self._put(fitted.model, fitted.model.trained_noise.detach())
        return fitted

    def _put(self, model: Any, noise: Tensor) -> None:
        adapted_clip(model).head.anprompt_noise_prompts["default"] = self.rate * noise
