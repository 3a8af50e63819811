"""Methods by name, the loop that trains them, and what all of them must keep to."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anprompt_peft import evaluation
from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.benchmarks import catalog
from anprompt_peft.evaluation.peers import METHODS, Batch, Recipe, make_method, seeded, train
from anprompt_peft.evaluation.task import ImageSet
from anprompt_peft.training.recipes import RECIPES
from helpers import make_clip
from peers import BASE, MIXED, NEW, ONE_STEP, PROCESSOR, image_set, quick

OWN = """
from dataclasses import dataclass, field
from anprompt_peft.evaluation.peers import Recipe

@dataclass(frozen=True)
class Own:
    recipe: Recipe = Recipe(learning_rate=0.5, epochs=3)
    weights: dict = field(default_factory=lambda: {"a": 1, "b": 2})
    name: str | None = "x"

    def fit(self, backbone, shots, classes, seed):
        return self

class NoDataclass:
    def fit(self): ...
"""


BACKBONE = Backbone(make_clip(), PROCESSOR)
SHOTS = image_set([0, 1, 2, 2, 1, 0, 1], augmentation=ClipTransform(PROCESSOR, augment=True))
TRAINED = {preset.method: name for name, preset in METHODS.items() if preset.settings.get("recipe")}
"""A preset of every class that is trained."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_to_the_protocol(name: str) -> None:
    """The same seed gives the same logits bit for bit; backbone, shots and random numbers are left as they were."""
    images = image_set([0, 1, 2, 3], MIXED.names, seed=1)
    before = {key: value.clone() for key, value in BACKBONE.clip.state_dict().items()}
    drawn = torch.random.get_rng_state()
    method = quick(name)
    fitted = method.fit(BACKBONE, SHOTS, BASE, 1)
    results = [fitted.logits(images, classes) for classes in (BASE, MIXED, NEW)]
    assert torch.equal(drawn, torch.random.get_rng_state())
    for key, value in BACKBONE.clip.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(each.requires_grad or each.grad is not None for each in BACKBONE.clip.parameters())
    assert not BACKBONE.clip.training
    again = method.fit(Backbone(BACKBONE.copy(), BACKBONE.processor), SHOTS, BASE, 1)
    for logits, classes in zip(results, (BASE, MIXED, NEW), strict=True):
        assert (logits.dtype, logits.device.type, logits.requires_grad) == (torch.float32, "cpu", False)
        assert logits.shape == (4, len(classes.names))
        assert bool(logits.isfinite().all())
        assert torch.equal(again.logits(images, classes), logits)


@pytest.mark.parametrize("name", TRAINED.values())
def test_what_is_trained_depends_on_the_seed(name: str) -> None:
    one, other = (quick(name).fit(BACKBONE, SHOTS, BASE, seed).logits(SHOTS, BASE) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_presets_say_where_they_come_from_and_can_be_written_down() -> None:
    assert {"zero-shot", "zero-shot-ensemble", "linear-probe", "tip-adapter", "tip-adapter-f", "prolip"} <= set(
        METHODS
    )
    assert {"coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "lora", "mmrl", "anprompt"} <= set(METHODS)
    assert {"mmrl-few-shot", "mmrl-cross-data"} <= set(METHODS)
    for name, preset in METHODS.items():
        assert len(preset.source) > 20, name
        method: Any = make_method(name)
        written = json.loads(json.dumps(dataclasses.asdict(method)))
        assert make_method(name, **written) == method


def test_settings_stand_over_the_preset() -> None:
    lora: Any = make_method("lora", rank=4, recipe={"learning_rate": 1e-3, "steps": 7})
    assert (lora.rank, lora.alpha, lora.targets) == (4, 1.0, ("q_proj", "k_proj", "v_proj"))
    assert (lora.recipe.learning_rate, lora.recipe.steps, lora.recipe.weight_decay) == (1e-3, 7, 0.01)
    assert make_method("tip-adapter-f", recipe=None) == make_method("tip-adapter")
    ours: Any = make_method("mmrl", config={"alpha": 0.5, "frozen_share": 0.25})
    assert ours.config == {
        "alpha": 0.5, "num_noise_tokens": 0, "waloss_weight": 0.0, "similarity_weight": 0.5, "frozen_share": 0.25,
        "text_update_rank": None, "rephrased_weight": 0.0,
    }  # fmt: skip
    assert make_method("anprompt", recipe=lora.recipe).recipe is lora.recipe  # type: ignore[attr-defined]


def test_some_data_sets_have_published_settings_of_their_own() -> None:
    """They stand over the preset, and what the caller gives over both."""
    for name, preset in METHODS.items():
        assert set(preset.exceptions) <= set(catalog()), name
        for data in preset.exceptions:
            assert make_method(name, data) != make_method(name), (name, data)
    made: Any = make_method
    assert (made("coop").recipe.epochs, made("coop", "imagenet").recipe.epochs) == (200, 50)
    assert made("coop-16", "ImageNet").recipe == replace(made("coop-16").recipe, epochs=50)
    assert made("tip-adapter-f", "EuroSAT").recipe == replace(made("tip-adapter-f").recipe, epochs=100)
    assert made("mmrl", "eurosat").config == {**made("mmrl").config, "latent_dim": 2048, "similarity_weight": 0.01}
    assert made("mmrl", "imagenet").recipe == replace(made("mmrl").recipe, epochs=5, batch_size=32)
    assert [each for each in METHODS if made(each, "imagenet") != made(each) and "ensemble" in vars(made(each))] == [
        "prolip", "tip-adapter", "tip-adapter-f",
    ]  # fmt: skip
    assert made("promptsrc-few-shot", "dtd").average_width == 0.1
    assert made("coop", "imagenet", recipe={"epochs": 3}).recipe.epochs == 3
    assert made("mmrl", "eurosat", config={"latent_dim": None}).config["similarity_weight"] == 0.01
    for own in ("./eurosat", "eurosat:data", "someone/eurosat", "caltech101"):
        assert made("tip-adapter-f", own) == made("tip-adapter-f")


def test_mmrl_has_the_settings_of_its_three_protocols() -> None:
    base, few, cross = (make_method(name) for name in ("mmrl", "mmrl-few-shot", "mmrl-cross-data"))
    plain: Any = base
    assert few == replace(plain, recipe=replace(plain.recipe, epochs=50, batch_size=32))
    recipe = replace(plain.recipe, epochs=1, batch_size=32, warmup_epochs=0)
    assert cross == replace(plain, recipe=recipe, config={**plain.config, "similarity_weight": 0.2})
    for data in catalog():
        with_recipe: Any = make_method("mmrl-few-shot", data)
        assert with_recipe.config == make_method("mmrl", data).config  # type: ignore[attr-defined]
        assert (with_recipe.recipe.epochs, with_recipe.recipe.batch_size) == (5 if data == "imagenet" else 50, 32)
        assert make_method("mmrl-cross-data", data) == cross


@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("images", [4, 20, 41])
def test_the_warm_up_is_that_of_the_trainers_recipe(epochs: int, images: int) -> None:
    for name in (each for each in METHODS if each.startswith("anprompt")):
        ours: Recipe = make_method(name, recipe={"epochs": epochs}).recipe  # type: ignore[attr-defined]
        total, per_epoch = ours.steps_for(images), ours.steps_per_epoch(images)
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=ours.learning_rate)
        theirs = RECIPES["paper" if name == "anprompt-paper" else "default"].schedule(optimizer, per_epoch, total)
        rates = []
        for _ in range(total):
            rates.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        assert [ours.rate(step, images) for step in range(total)] == pytest.approx(rates), name
    stated: Any = make_method("anprompt", recipe={"epochs": 1, "warmup_epochs": 1})
    assert stated.recipe.warmup_epochs == 1
    in_steps: Any = make_method("anprompt", recipe={"epochs": None, "steps": 5})
    assert in_steps.recipe.warmup_epochs == 1


def test_own_methods_are_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    own: Any = make_method("own_method:Own", recipe={"epochs": 5}, weights={"b": 3}, name=None)
    assert own.recipe == Recipe(learning_rate=0.5, epochs=5)
    assert (own.weights, own.name) == ({"a": 1, "b": 3}, None)
    assert make_method("own_method:Own") == type(own)()
    with pytest.raises(ValueError, match=r"own_method must have a dataclass 'NoDataclass' with a method fit"):
        make_method("own_method:NoDataclass")
    with pytest.raises(ValueError, match=r"own_method must have a dataclass 'None' with a method fit"):
        make_method("own_method:None")


def test_what_is_unknown_is_named_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"method 'co-op' is unknown. Choose one of \['anchored-classifier', .*or module:Class"
    ):
        make_method("co-op")
    with pytest.raises(ValueError, match=r"method 'linear-probe' has no settings \['c'\]. It has \['C', 'max_iterat"):
        make_method("linear-probe", c=1)
    with pytest.raises(ValueError, match=r"there is no module 'no_such' in this folder or installed"):
        make_method("no_such.inner:Own")
    (tmp_path / "broken_method.py").write_text("import missing_dependency")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
        make_method("broken_method:Own")


def test_names_are_known_without_loading_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    package = "anprompt_peft.evaluation.peers"
    monkeypatch.setattr(evaluation, "peers", evaluation.peers)
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    assert list(import_module(package).METHODS) == list(METHODS)
    loaded = {name for name in sys.modules if name.startswith(f"{package}.")}
    assert loaded == {f"{package}.{name}" for name in ("protocol", "training", "registry")}


# --- the loop


def rows_of(recipe: Recipe, seed: int = 0) -> list[list[int]]:
    """The rows of every step."""
    weight = torch.zeros(1, requires_grad=True)
    seen: list[list[int]] = []

    def loss(batch: Batch) -> Tensor:
        assert batch.labels.tolist() == [SHOTS.labels[row] for row in batch.rows]
        seen.append(batch.rows.tolist())
        return weight.sum()

    train([weight], loss, SHOTS, recipe, seed)
    return seen


def test_every_epoch_is_shuffled_again_and_leaves_no_shot_out() -> None:
    seen = rows_of(Recipe(0.1, epochs=3, batch_size=3))
    assert [len(rows) for rows in seen] == [3, 3, 1] * 3
    epochs = [[*seen[start], *seen[start + 1], *seen[start + 2]] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert seen == rows_of(Recipe(0.5, epochs=3, batch_size=3))
    assert seen != rows_of(Recipe(0.1, epochs=3, batch_size=3), seed=1)
    assert [len(rows) for rows in rows_of(Recipe(0.1, epochs=9, batch_size=3, steps=5))] == [3, 3, 1, 3, 3]
    assert [len(rows) for rows in rows_of(Recipe(0.1, epochs=2, batch_size=None))] == [7, 7]


def test_rates_by_hand() -> None:
    """10 images in batches of 4: 3 steps per epoch."""

    def rates(**settings: Any) -> list[float]:
        recipe = Recipe(learning_rate=2.0, batch_size=4, warmup_learning_rate=0.1, **settings)
        return [recipe.rate(step, 10) for step in range(recipe.steps_for(10))]

    half = math.sqrt(0.5)
    assert rates(epochs=1, schedule="constant") == [2.0] * 3
    assert rates(epochs=2, schedule="constant", warmup_epochs=1) == [0.1] * 3 + [2.0] * 3
    assert rates(steps=4) == pytest.approx([2, 1 + half, 1, 1 - half])
    assert rates(steps=7, warmup_epochs=1, final_learning_rate=1.0) == pytest.approx(
        [0.1, 0.1, 0.1, 2, 1.5 + half / 2, 1.5, 1.5 - half / 2]
    )
    assert rates(epochs=4, schedule="cosine-per-epoch", warmup_epochs=1) == pytest.approx(
        [0.1] * 3 + [2.0] * 3 + [1 + half] * 3 + [1] * 3
    )
    assert rates(epochs=2, schedule="cosine-per-epoch", warmup_epochs=0.5) == pytest.approx([0.1] * 2 + [2] * 3 + [1])


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_steps_are_those_of_torchs_optimizers(optimizer: Any, kind: str) -> None:
    recipe = Recipe(
        0.1, epochs=3, batch_size=None, optimizer=optimizer, weight_decay=0.2, momentum=0.5, epsilon=0.01,
        clip_norm=0.3, schedule="cosine-per-epoch",
    )  # fmt: skip
    start = torch.tensor([1.0, -2.0])
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    after: list[list[float]] = []
    losses = train([ours], lambda batch: ours.pow(2).sum(), SHOTS, recipe, 0, lambda: after.append(ours.tolist()))
    extra = {"momentum": 0.5} if kind == "SGD" else {"eps": 0.01}
    reference = getattr(torch.optim, kind)([theirs], lr=0.1, weight_decay=0.2, **extra)
    expected = []
    for rate in (0.1, 0.075, 0.025):
        loss = theirs.pow(2).sum()
        reference.zero_grad()
        loss.backward()
        assert theirs.grad is not None
        theirs.grad.mul_(0.3 / (theirs.grad.norm() + 1e-6))
        reference.param_groups[0]["lr"] = rate
        reference.step()
        expected.append(loss.item())
        assert after[len(expected) - 1] == pytest.approx(theirs.tolist())
    assert losses == pytest.approx(expected)


def test_views_are_drawn_from_the_seed_where_there_are_any() -> None:
    def pixels(images: ImageSet, seed: int, augment: bool = True) -> Tensor:
        seen = []
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)

        def loss(batch: Batch) -> Tensor:
            seen.append(batch.pixels)
            assert batch.pixels is batch.pixels
            return weight.sum()

        train([weight], loss, images, Recipe(0.1, epochs=2, batch_size=3, augment=augment), seed)
        return torch.cat(seen)

    plain = dataclasses.replace(SHOTS, augmentation=None)
    drawn = pixels(SHOTS, 1)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn, pixels(SHOTS, 1))
    assert not torch.equal(drawn, pixels(SHOTS, 2))
    assert not torch.equal(drawn[:7].sum(), drawn[7:].sum())
    assert torch.equal(pixels(plain, 1), pixels(SHOTS, 1, augment=False))


def test_random_numbers_go_on_after_a_seeded_block() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(1)
    with seeded(9):
        inside = torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
    with seeded(9):
        assert torch.equal(torch.rand(1), inside)


def test_what_cannot_be_trained() -> None:
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="nothing to train: 0 parameters and 7 shots"):
        train([], lambda batch: weight.sum(), SHOTS, ONE_STEP, 0)
    with pytest.raises(FloatingPointError, match=r"the loss of epoch 1 is nan: lower learning_rate=0\.1"):
        train([weight], lambda batch: weight.sum() * math.nan, SHOTS, ONE_STEP, 0)
    unusable: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": "lion"}, r"optimizer='lion' must be one of \['sgd', 'adam', 'adamw'\]"),
        ({"schedule": "linear"}, r"schedule='linear' must be one of \['constant'"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0 must not be negative"),
        ({"clip_norm": math.nan}, "clip_norm=nan must not be negative"),
    ]
    for settings, message in unusable:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ONE_STEP, **settings)


def test_the_page_names_every_preset() -> None:
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    table = page.partition("## Settings")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) == set(METHODS)
