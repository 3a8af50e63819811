"""The controls of the embedded suite's tables do what they say."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from anprompt_peft.evaluation.peers import Batch, Recipe, make_method
from anprompt_peft.evaluation.peers.lora import LoRA
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.method.rephrase import draw_rephrased, vocabulary
from helpers import assert_exact
from peers import BACKBONE, BASE, image_set
from trials import HalfFrozen, NoisyLoRA

SHOTS = image_set([0, 1, 2])


def test_lora_on_rephrased_texts() -> None:
    settings: dict[str, Any] = {
        "rank": 2, "alpha": 1.0, "dropout": 0.0, "targets": ("q_proj",), "steps_per_shot": None, "text_chunk": 8,
        "recipe": Recipe(learning_rate=0.1, batch_size=None),
    }  # fmt: skip
    batch, clip = Batch(SHOTS, torch.arange(3), next(BACKBONE.clip.parameters())), BACKBONE.copy()
    own = LoRA(**settings).loss_of(clip, BACKBONE, BASE, 0)(batch)
    noisy = NoisyLoRA(**settings, weight=3.0, drawn=4).loss_of(clip, BACKBONE, BASE, 0)
    rng, words = random.Random("steps 0"), vocabulary(BACKBONE.processor.tokenizer)
    for step in range(2):
        texts, rows, others = draw_rephrased(BASE.names, BASE.templates, words, 4, rng)
        moved = (BACKBONE.text_features(texts) * BACKBONE.class_features(BASE)[rows]).sum(dim=-1)
        expected = 3 * (1 - torch.cat([moved, torch.ones(len(others)).double()]).mean())
        assert_exact((noisy(batch) - own).detach(), expected, str(step))
        assert expected > 1e-3, "an unchanged CLIP sees rephrased texts elsewhere"
    fitted = make_method("trials:NoisyLoRA", **{**settings, "recipe": {"learning_rate": 0.01, "steps": 2}})
    assert torch.isfinite(fitted.fit(BACKBONE, SHOTS, BASE, 0).logits(SHOTS, BASE)).all()


class Fixed:
    """A method whose logits are all 1."""

    def fit(self, *_: Any) -> Any:
        return self

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        return torch.ones(len(images), len(classes.names), dtype=torch.float64)


def test_half_frozen_changes_other_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trials.make_method", lambda name: {"fixed": Fixed()}[name])
    fitted = HalfFrozen("fixed", share=0.25).fit(BACKBONE, SHOTS, BASE, 0)
    assert (fitted.logits(SHOTS, BASE) == 1).all()
    new = ClassTexts(("cat", "bird"))
    assert_exact(fitted.logits(SHOTS, new), 0.75 + 0.25 * BACKBONE.zero_shot_logits(SHOTS, new))
