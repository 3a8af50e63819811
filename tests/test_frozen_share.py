"""The frozen share of an adapter, chosen by folds over its classes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import set_seed

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClipTransform, select_classes
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments, choose_frozen_share, frozen_share
from anprompt_peft.training.folds import HeldOut, choose_share, class_folds
from anprompt_peft.tuner import adapted_clip
from helpers import make_clip, tiny_tokenizer
from peers import PROCESSOR, image_set

NAMES = ["cat", "dog", "small fish", "red bird"]
TRAIN = image_set([3, 0, 1, 2, 2, 1, 0, 3], NAMES, seed=5).dataset
DESCRIPTIONS = {name: [f"{name} is a thing"] for name in NAMES}


def config(**fields: Any) -> ANPromptConfig:
    return ANPromptConfig(class_names=NAMES, tokenizer_name_or_path=tiny_tokenizer(), **fields)


def arguments(folder: Path, **fields: Any) -> ANPromptTrainingArguments:
    settings: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 0.02, "disable_tqdm": True, "use_cpu": True}
    settings |= {"report_to": [], "logging_strategy": "no", "seed": 3, **fields}
    return ANPromptTrainingArguments(str(folder), **settings)


def drawn() -> tuple[Any, ...]:
    return random.random(), np.random.random(), torch.rand(()).item()


@pytest.mark.parametrize("fields", [{}, {"descriptions": DESCRIPTIONS, "frozen_share": 0.0}])
def test_it_is_what_trainings_on_halves_say(fields: dict[str, Any], tmp_path: Path) -> None:
    """Each fold as a user would run it: an adapter of half the classes, asked for the others with and without it."""
    clip, given = make_clip(), config(**fields)
    set_seed(9)
    expected_next = drawn()
    set_seed(9)
    weights = {name: value.clone() for name, value in clip.state_dict().items()}
    own = arguments(tmp_path / "run", save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True)
    found = choose_frozen_share(clip, given, own, TRAIN, PROCESSOR, augment=False)
    assert drawn() == expected_next, "random numbers go on"
    assert all(torch.equal(value, weights[name]) for name, value in clip.state_dict().items())
    assert (given.class_names, given.frozen_share) == (NAMES, fields.get("frozen_share", 0.5))
    assert not (tmp_path / "run").exists()
    answers, folds = [], class_folds(NAMES, 3)
    for fold in folds:
        half, fresh = config(**fields), make_clip()
        half.class_names = list(fold.learned)
        set_seed(3)
        model: Any = get_peft_model(fresh, half)
        learned: Any = select_classes(TRAIN, fold.learned)
        trainer = ANPromptTrainer(
            model, arguments(tmp_path / "half"), train_dataset=ClipTransform(PROCESSOR).apply(learned)
        )
        trainer.train()
        held: Any = select_classes(TRAIN, fold.held_out)
        images = ClipTransform(PROCESSOR).apply(held)[:]
        model.eval().set_classes(fold.held_out)
        with torch.no_grad():
            adapted = model(pixel_values=images["pixel_values"]).logits_class
            with model.disable_adapter():
                frozen = model(pixel_values=images["pixel_values"]).logits
        rows = [row for row, label in enumerate(TRAIN["label"]) if NAMES[label] in fold.held_out]
        answers.append(HeldOut(torch.tensor(rows), torch.tensor(images["labels"]), adapted, frozen))
    expected = choose_share(folds, answers, 3)
    assert found.folds == expected.folds
    assert (found.share, found.images, found.reason) == (expected.share, 8, expected.reason)
    for one, other in zip(found.candidates, expected.candidates, strict=True):
        assert one.accuracy == other.accuracy
        assert one.cross_entropy == pytest.approx(other.cross_entropy, abs=2e-4)


def test_steps_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prepare(trainer: ANPromptTrainer, number: int, total: int) -> None:
        seen.append((trainer.args.max_steps, number, total, adapted_clip(trainer.model).class_names))

    own = arguments(tmp_path, max_steps=6)
    choice = choose_frozen_share(make_clip(), config(), own, TRAIN, PROCESSOR, cuts=2, prepare=prepare)
    assert [each[:3] for each in seen] == [(3, 1, 4), (3, 2, 4), (3, 3, 4), (3, 4, 4)]
    assert [tuple(each[3]) for each in seen] == [fold.learned for fold in choice.folds]
    assert own.max_steps == 6


def test_the_configuration_of_a_loaded_adapter_serves_as_well(tmp_path: Path) -> None:
    """Also of a trained one, which has a fitted classifier."""
    made: Any = get_peft_model(make_clip(), config())
    loaded = made.peft_config["default"]
    loaded.init_noise_prompts, loaded.inference_mode, loaded.frozen_share = False, True, 0.25
    loaded.classifier_strength = 1e-4
    own = arguments(tmp_path, num_train_epochs=1)
    one, other = (choose_frozen_share(make_clip(), each, own, TRAIN, PROCESSOR) for each in (loaded, config()))
    assert one == other
    assert (loaded.init_noise_prompts, loaded.inference_mode, loaded.frozen_share) == (False, True, 0.25)
    assert loaded.classifier_strength == 1e-4


def test_three_classes_train_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_share, "get_peft_model", None)
    three = ANPromptConfig(class_names=NAMES[:3], tokenizer_name_or_path=tiny_tokenizer())
    data: Any = select_classes(TRAIN, NAMES[:3])
    choice = choose_frozen_share(make_clip(), three, arguments(tmp_path), data, PROCESSOR)
    assert (choice.share, choice.candidates) == (0.5, ())


def test_what_has_no_share_to_choose(tmp_path: Path) -> None:
    own, clip, swapped = arguments(tmp_path), make_clip(), config()
    swapped.class_names = NAMES[1::-1]
    with pytest.raises(ValueError, match=r"inference_logits='class' takes no frozen_share: leave it 'auto'"):
        choose_frozen_share(clip, config(inference_logits="class"), own, TRAIN, PROCESSOR)
    with pytest.raises(ValueError, match=r"The data number \['cat', .* and the configuration has class_names=\['dog'"):
        choose_frozen_share(clip, swapped, own, TRAIN, PROCESSOR)
    with pytest.raises(ValueError, match="cuts=0 must be at least 1"):
        choose_frozen_share(clip, config(), own, TRAIN, PROCESSOR, cuts=0)
    with pytest.raises(TypeError, match="clip must be a CLIPModel without an adapter, got ANPromptCLIPModel"):
        choose_frozen_share(get_peft_model(clip, config()).get_base_model(), config(), own, TRAIN, PROCESSOR)
