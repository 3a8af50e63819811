"""LoRA on the attention of both encoders, through PEFT (Zanella and Ben Ayed, 2024, arXiv 2405.18541: CLIP-LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional as F

from ...method.features import at_least_float32, ensemble, normalize
from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .protocol import added
from .training import Batch, LossOfBatch, Recipe, in_chunks, seeded, train
from .zero_shot import FrozenCLIP


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates `alpha / sqrt(rank) * B A` of attention matrices, trained with the cross entropy."""

    rank: int
    alpha: float
    dropout: float  # share of an update's inputs that training leaves out
    targets: tuple[str, ...]  # names of CLIP's linear layers, in all layers of both encoders
    steps_per_shot: int | None  # steps of the training for each shot of a class, in place of the recipe's
    text_chunk: int  # class texts encoded at a time; more are each computed twice, to save memory
    recipe: Recipe
    templates: tuple[str, ...] = added(())  # of all class texts, in place of the task's; none leaves those

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> TunedCLIP:
        """Train the updates and merge them into a copy of CLIP."""
        if self.templates:
            classes = replace(classes, templates=self.templates)
        alpha: Any = self.alpha  # PEFT takes any number
        config = LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_rslora=True,
            target_modules=list(self.targets),
        )
        with seeded(seed):
            model: Any = get_peft_model(backbone.copy(), config).train()
        recipe = self.recipe
        if self.steps_per_shot is not None:
            recipe = replace(recipe, steps=self.steps_per_shot * max(1, round(len(shots) / len(classes.names))))
        loss = self.loss_of(model.get_base_model(), backbone, classes, seed)
        train([each for each in model.parameters() if each.requires_grad], loss, shots, recipe, seed)
        saved = {name: each.detach().clone() for name, each in get_peft_model_state_dict(model).items()}
        merged = Backbone(model.merge_and_unload(), backbone.processor)
        return TunedCLIP(merged, self.templates, bool(self.templates), config, saved)

    def loss_of(self, clip: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        """Return what is minimised: the cross entropy of a CLIP with the updates in."""
        tokens = backbone.tokens(classes.texts)

        def encode(rows: Tensor) -> Tensor:
            return normalize(at_least_float32(clip.get_text_features(input_ids=rows).pooler_output))

        def loss(batch: Batch) -> Tensor:
            texts = ensemble(in_chunks(encode, tokens, self.text_chunk), len(classes.templates))
            images = normalize(at_least_float32(clip.get_image_features(batch.pixels).pooler_output))
            return F.cross_entropy(backbone.logit_scale * images @ texts.T, batch.labels)

        return loss


@dataclass(frozen=True, eq=False)
class TunedCLIP(FrozenCLIP):
    """A CLIP with the updates merged in, and these as PEFT saves them."""

    config: LoraConfig | None = None
    saved: Mapping[str, Tensor] = field(default_factory=dict)
