"""The wrapper by which other methods wear what ANPrompt has beside its prompts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anprompt_peft.anchored import fit_anchored
from anprompt_peft.denoising import Denoising, load_denoised, save_denoiser, train_denoiser
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.grid import Setup, make_cells
from anprompt_peft.evaluation.grid.measure import measure
from anprompt_peft.evaluation.peers import METHODS, make_method
from anprompt_peft.evaluation.peers import equipped as module
from anprompt_peft.evaluation.peers.equipped import Equipped, share_by_folds
from anprompt_peft.evaluation.peers.protocol import settings_of
from anprompt_peft.evaluation.task import ClassTexts, ImageSet, Part, Task
from anprompt_peft.training.folds import ShareChoice, class_folds
from helpers import assert_exact, make_clip, tiny_tokenizer
from peers import BACKBONE, BASE, MIXED, NEW, image_set

PATH = "anprompt_peft.evaluation.peers.equipped:Equipped"
SHOTS = image_set([0, 1, 2, 2, 1, 0])
IMAGES = image_set([0, 1, 2, 3], MIXED.names, seed=1)
QUICK: dict[str, Any] = {"recipe": {"steps": 2, "learning_rate": 0.01, "augment": False}}
PEERS: dict[str, dict[str, Any]] = {
    "linear-probe": {},
    "prolip": QUICK,
    "lora": {**QUICK, "steps_per_shot": None, "templates": []},
    "coop": QUICK,
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("share", [None, 0.0, 0.25, 1.0])
def test_the_share_is_mixed_in_for_other_classes_alone(name: str, share: float | None) -> None:
    plain = make_method(name, **PEERS[name]).fit(BACKBONE, SHOTS, BASE, 3)
    worn = Equipped(name, PEERS[name], frozen_share=share).fit(BACKBONE, SHOTS, BASE, 3)
    misspelt = replace(BASE, written=("kat", "dgo", "small fihs"))
    for classes in (BASE, misspelt):
        assert torch.equal(worn.logits(IMAGES, classes), plain.logits(IMAGES, classes))
    for classes in (NEW, MIXED, replace(NEW, written=("rde bird", "draing"))):
        mine = share or 0.0
        expected = (1 - mine) * plain.logits(IMAGES, classes) + mine * BACKBONE.zero_shot_logits(IMAGES, classes)
        assert_exact(worn.logits(IMAGES, classes), expected)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_anprompt_equipped_is_anprompt_with_its_own_share(share: float) -> None:
    bare = {"frozen_share": 0.0, "classifier_weight": 0.0}
    worn = Equipped("anprompt", {**QUICK, "config": bare}, frozen_share=share).fit(BACKBONE, SHOTS, BASE, 1)
    own = make_method("anprompt", **QUICK, config={**bare, "frozen_share": share}).fit(BACKBONE, SHOTS, BASE, 1)
    for classes in (BASE, NEW, MIXED, replace(NEW, written=("a red bird", "drwaing"))):
        assert_exact(worn.logits(IMAGES, classes), own.logits(IMAGES, classes))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_anprompt_equipped_is_anprompt_with_its_own_classifier(share: float) -> None:
    settings: dict[str, Any] = {**QUICK, "config": {"frozen_share": 0.0, "classifier_weight": 0.0}}
    worn = Equipped("anprompt", settings, share, classifier_weight=0.7).fit(BACKBONE, SHOTS, BASE, 1)
    config = {"frozen_share": share, "classifier_weight": 0.7}
    own = make_method("anprompt", **{**QUICK, "config": config}).fit(BACKBONE, SHOTS, BASE, 1)
    for classes in (BASE, NEW, MIXED, replace(BASE, written=("kat", "dgo", "small fihs"))):
        assert_exact(worn.logits(IMAGES, classes), own.logits(IMAGES, classes))
    both = {**QUICK, "config": {"frozen_share": 0.0, "classifier_weight": 0.7}}
    with pytest.raises(ValueError, match=r"classifier_weight=0\.5: anprompt has a classifier_weight of its own, 0\.7"):
        Equipped("anprompt", both, classifier_weight=0.5)
    with pytest.raises(ValueError, match=r"frozen_share=0\.5 would mix in behind the classifier that anprompt has"):
        Equipped("anprompt", both, frozen_share=0.5)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of the tiny CLIP."""
    folder, settings = (
        tmp_path_factory.mktemp("denoiser"),
        Denoising(rank=2, steps=3, batch_size=2, learning_rate=0.05),
    )
    save_denoiser(train_denoiser(make_clip(), tiny_tokenizer(), settings), folder, settings)
    return folder


@pytest.mark.parametrize("name", ["zero-shot", "lora"])
def test_a_denoiser_changes_texts_alone(name: str, denoiser: Path) -> None:
    """The method, the frozen CLIP beside it and the images' features: all as with a CLIP that it is merged into."""
    before = {key: value.clone() for key, value in BACKBONE.clip.state_dict().items()}
    settings = PEERS.get(name, {})
    denoised = Backbone(load_denoised(BACKBONE.copy(), denoiser), BACKBONE.processor)
    worn = Equipped(name, settings, frozen_share=0.5, denoiser=str(denoiser)).fit(BACKBONE, SHOTS, BASE, 3)
    plain = make_method(name, **settings).fit(denoised, SHOTS, BASE, 3)
    assert_exact(worn.logits(IMAGES, BASE), plain.logits(IMAGES, BASE))
    expected = 0.5 * plain.logits(IMAGES, MIXED) + 0.5 * denoised.zero_shot_logits(IMAGES, MIXED)
    assert_exact(worn.logits(IMAGES, MIXED), expected)
    assert worn.frozen.backbone.image_features(IMAGES) is BACKBONE.image_features(IMAGES)
    moved = worn.frozen.backbone.class_features(BASE) - BACKBONE.class_features(BASE)
    assert moved.abs().max() > 1e-3
    assert all(torch.equal(value, before[key]) for key, value in BACKBONE.clip.state_dict().items())


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_classifier_is_joined_among_the_classes_trained_on(share: float | None, weight: float) -> None:
    bare = Equipped("lora", PEERS["lora"], share).fit(BACKBONE, SHOTS, BASE, 3)
    worn = Equipped("lora", PEERS["lora"], share, classifier_weight=weight).fit(BACKBONE, SHOTS, BASE, 3)
    features, texts = BACKBONE.image_features(SHOTS), BACKBONE.class_features(BASE)
    fitted = fit_anchored(features, SHOTS.labels, texts, BACKBONE.logit_scale, seed=3)
    assert worn.chosen == {"classifier_strength": fitted.strength}
    learned = BACKBONE.logit_scale * BACKBONE.image_features(IMAGES) @ fitted.rows.T
    misspelt = replace(BASE, written=("kat", "dgo", "small fihs"))
    for classes in (BASE, misspelt):
        expected = bare.logits(IMAGES, classes).log_softmax(1) + weight * learned.log_softmax(1)
        assert_exact(worn.logits(IMAGES, classes), expected)
    assert torch.equal(worn.logits(IMAGES, NEW), bare.logits(IMAGES, NEW))
    fish, cat = 1, 2  # in MIXED; in BASE they are 2 and 0
    p = bare.logits(IMAGES, MIXED).softmax(1)
    known = bare.logits(IMAGES, MIXED)[:, [fish, cat]].log_softmax(1)
    among = (known + weight * learned[:, [2, 0]].log_softmax(1)).softmax(1)
    expected = p.clone()
    expected[:, [fish, cat]] = among * p[:, [fish, cat]].sum(1, keepdim=True)
    assert_exact(worn.logits(IMAGES, MIXED).softmax(1), expected)


def test_a_classifier_of_a_strength_and_denoised_texts(denoiser: Path) -> None:
    start = load_denoised(BACKBONE.copy(), denoiser)
    texts = Backbone(start, BACKBONE.processor).class_features(BASE)
    worn = Equipped("zero-shot", denoiser=str(denoiser), classifier_weight=1.0, classifier_strength=0.02)
    rows = fit_anchored(BACKBONE.image_features(SHOTS), SHOTS.labels, texts, BACKBONE.logit_scale, strength=0.02).rows
    found = worn.fit(BACKBONE, SHOTS, BASE, 0).classifier
    assert found is not None
    assert_exact(found.rows, rows)


def test_settings_added_later_are_no_part_of_a_key_at_their_defaults() -> None:
    assert set(settings_of(Equipped("lora"))) == {"of", "settings", "frozen_share"}
    assert settings_of(Equipped("lora", classifier_weight=0.5))["classifier_weight"] == 0.5


def test_a_denoiser_that_is_not_there_ends_a_cell_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Any = Recorded()
    monkeypatch.setattr(module, "make_method", lambda *_, **__: method)
    with pytest.raises(FileNotFoundError, match="none"):
        Equipped("any", frozen_share="folds", denoiser=str(tmp_path / "none")).fit(BACKBONE, FOUR_SHOTS, FIVE, 0)
    assert not method.fits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classifier_weight": -1.0}, r"classifier_weight=-1\.0 must be a number of at least 0"),
        ({"classifier_weight": "1"}, r"classifier_weight='1' must be a number of at least 0"),
        ({"classifier_strength": 0.0}, r"classifier_strength=0\.0 must be a number above 0, or None"),
    ],
)
def test_values_outside_their_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(PATH, of="lora", **wrong)


FIVE = ClassTexts(("cat", "dog", "small fish", "red bird", "drawing"), written=("cat", "dog", "fish", "bird", "art"))
FOUR_SHOTS = image_set([4, 0, 1, 2, 3, 3, 2, 1, 0, 4], FIVE.names, seed=2)


class Recorded:
    """A method that keeps what it is fitted to, and answers with fixed logits."""

    def __init__(self) -> None:
        self.fits: list[tuple[ImageSet, ClassTexts, int]] = []

    def fit(self, backbone: Any, shots: ImageSet, classes: ClassTexts, seed: int) -> Any:
        self.fits.append((shots, classes, seed))
        return self

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """The label is always right, with a margin that no frozen CLIP makes up for."""
        return 1e4 * torch.nn.functional.one_hot(images.labels, len(classes.names)).double()


def test_folds_train_on_one_half_and_answer_for_the_other() -> None:
    method: Any = Recorded()
    choice = share_by_folds(method, BACKBONE, FOUR_SHOTS, FIVE, 5)
    assert list(choice.folds) == class_folds(FIVE.names, 5)
    assert choice.images == len(FOUR_SHOTS)
    assert [each.accuracy for each in choice.candidates[:4]] == [100] * 4
    for fold, (shots, classes, seed) in zip(choice.folds, method.fits, strict=True):
        assert (classes.names, shots.class_names, seed) == (fold.learned, fold.learned, 5)
        assert classes.written == tuple(FIVE.written[FIVE.names.index(name)] for name in fold.learned)
        names = [fold.learned[label] for label in shots.labels]
        kept = [row for row, label in enumerate(FOUR_SHOTS.labels) if FIVE.names[label] in fold.learned]
        assert names == [FIVE.names[label] for label in FOUR_SHOTS.labels[kept]]
        assert torch.equal(shots.pixels(), FOUR_SHOTS.pixels()[kept])


def test_the_share_that_folds_choose_is_worn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "share_by_folds", lambda *given: ShareChoice(0.75, "it was asked for", given[-1]))
    fitted = Equipped("lora", PEERS["lora"], frozen_share="folds").fit(BACKBONE, SHOTS, BASE, 4)
    number = Equipped("lora", PEERS["lora"], frozen_share=0.75).fit(BACKBONE, SHOTS, BASE, 4)
    assert torch.equal(fitted.logits(IMAGES, NEW), number.logits(IMAGES, NEW))
    assert (fitted.chosen["frozen_share"]["reason"], number.chosen) == ("it was asked for", {})
    assert fitted.chosen["frozen_share"]["seed"] == 4


def test_a_cell_with_folds_is_repeatable_and_says_what_was_chosen() -> None:
    """Trainings that only choose do not count among the learnable parameters."""
    task = Task(FOUR_SHOTS, FIVE, (Part("new", IMAGES, MIXED),))
    worn = [
        make_method(PATH, of="lora", settings=PEERS["lora"], frozen_share=share) for share in ("folds", "folds", 0.5)
    ]
    cells = [make_cells(Setup("clip"), ["data"], {"lora": each}, [1])[0] for each in worn]
    (one, found), (two, again), (number, _) = (measure(each, BACKBONE, task) for each in cells)
    chosen = one["chosen"]["frozen_share"]
    assert [each["share"] for each in chosen["candidates"]] == [0, 0.25, 0.5, 0.75, 1]
    assert (chosen["images"], len(chosen["folds"]), chosen["seed"]) == (10, 2, 1)
    assert json.loads(json.dumps(one["chosen"])) == two["chosen"]
    assert found["new"].predicted.tolist() == again["new"].predicted.tolist()
    assert "chosen" not in number
    assert one["learnable_parameters"] == number["learnable_parameters"] > 0


def test_three_classes_leave_the_default_share() -> None:
    fitted = Equipped("lora", PEERS["lora"], frozen_share="folds").fit(BACKBONE, SHOTS, BASE, 0)
    assert fitted.share == 0.5
    assert fitted.chosen["frozen_share"]["reason"] == "the default: folds need 4 classes or more"


@pytest.mark.parametrize(
    ("settings", "share", "steps"), [({"steps": 150}, 0.6, 90), ({"steps": 1}, 0.4, 1), ({"epochs": 7}, 0.5, None)]
)
def test_steps_shrink_with_the_shots(settings: dict[str, Any], share: float, steps: int | None) -> None:
    recipe = module.shortened(make_method("lora", recipe=settings), share).recipe  # type: ignore[attr-defined]
    assert (recipe.steps, recipe.epochs) == (steps, settings.get("epochs", 1))
    probe = make_method("linear-probe")
    assert module.shortened(probe, 0.5) is probe


def test_settings_are_completed_by_preset_and_data_set() -> None:
    """So that the key of a cell has all that decides its result."""
    worn: Any = make_method(PATH, "eurosat", of="mmrl", settings={"config": {"alpha": 0.6}}, frozen_share=0.5)
    expected = settings_of(make_method("mmrl", "eurosat", config={"alpha": 0.6}))
    assert worn.settings == expected
    assert (
        worn.settings["config"]["similarity_weight"]
        == METHODS["mmrl"].exceptions["eurosat"]["config"]["similarity_weight"]
    )
    assert worn.method == make_method("mmrl", "eurosat", config={"alpha": 0.6})
    assert make_method(PATH, **asdict(worn)) == worn


def test_settings_given_at_a_default_are_not_those_of_the_preset() -> None:
    """LoRA's preset has one template for all data; without any, it has those of the data, and sees others."""
    given = {"templates": [], "dropout": 0.0}
    worn: Any = make_method(PATH, "eurosat", of="lora", settings=given)
    assert worn.method == make_method("lora", **given)
    assert worn.method.templates == ()
    assert make_method(PATH, "eurosat", **asdict(worn)) == worn


@pytest.mark.parametrize("share", [1.5, -0.1, "fold", True, float("nan"), "0.5"])
def test_a_share_that_is_none(share: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"frozen_share={share!r} must be a number between 0 and 1, 'folds', or None"
    ):
        make_method(PATH, of="lora", frozen_share=share)


def test_what_cannot_be_equipped() -> None:
    with pytest.raises(ValueError, match=r"method 'loar' is unknown. Choose one of"):
        Equipped("loar")
    with pytest.raises(ValueError, match=r"method 'lora' has no settings \['rang'\]"):
        Equipped("lora", {"rang": 2})
    with pytest.raises(ValueError, match=r"of='.*:Equipped' is equipped itself: name the method that it is made of"):
        Equipped(PATH, {"of": "lora"})
    for share in (0.5, "folds", 0.0):
        with pytest.raises(ValueError, match=r"anprompt has a frozen_share of its own, 0\.5, and both would add up"):
            Equipped("anprompt", frozen_share=share)
    assert Equipped("anprompt").frozen_share is None
