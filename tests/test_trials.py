"""The controls of the embedded suite's tables do what they say."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import torch

from anprompt_peft.evaluation.peers import Batch, Recipe, make_method
from anprompt_peft.evaluation.peers.equipped import Equipped
from anprompt_peft.evaluation.peers.lora import LoRA
from anprompt_peft.evaluation.task import ClassTexts
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


def test_half_frozen_is_equipped_under_its_former_settings() -> None:
    """Also for a method of this folder, which the wrapper finds by name."""
    settings: dict[str, Any] = {"recipe": {"learning_rate": 0.01, "steps": 2}, "steps_per_shot": None, "templates": []}
    new = ClassTexts(("cat", "bird"))
    former = HalfFrozen("lora", settings, share=0.25)
    assert asdict(former) == {"of": "lora", "settings": settings, "share": 0.25}
    ours = Equipped("lora", settings, frozen_share=0.25)
    one, other = (method.fit(BACKBONE, SHOTS, BASE, 0).logits(SHOTS, new) for method in (former, ours))
    assert torch.equal(one, other)
    rephrased = {**settings, "rank": 2, "alpha": 1.0, "dropout": 0.0, "targets": ["q_proj"], "text_chunk": 8}
    alone, equipped = make_method("trials:NoisyLoRA", **rephrased), Equipped("trials:NoisyLoRA", rephrased, 1.0)
    assert equipped.method == alone
    assert_exact(equipped.fit(BACKBONE, SHOTS, BASE, 0).logits(SHOTS, new), BACKBONE.zero_shot_logits(SHOTS, new))
