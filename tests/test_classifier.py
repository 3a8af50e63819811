"""The anchored classifier as a part of an adapter: fitted, joined, saved, loaded, compiled, served, trained."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPProcessor, TrainerCallback

import reference
from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.adapter import FittedAdapter
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.peers.zero_shot import FrozenCLIP
from anprompt_peft.evaluation.task import ClassTexts
from anprompt_peft.fast import Savings
from anprompt_peft.serve import predict
from anprompt_peft.training import ANPromptTrainer
from anprompt_peft.training import trainer as trainer_module
from helpers import (
    CLASSES,
    IMAGE_SIZE,
    LABELS,
    WEIGHTS,
    adapted,
    assert_exact,
    logits,
    make_clip,
    make_trainer,
    train_by_command,
)
from peers import BACKBONE, BASE, MIXED, NEW, PROCESSOR, image_set

CONFIG, FITTED = "adapter_config.json", "visual_projection.anprompt_classifier"
ASKED = [None, ["small fish", "cat", "dog"], ["dog", "Cat"], ["red bird", "dog", "cat"], ["red bird", "one fish"]]
BATCH = {
    "pixel_values": torch.randn(12, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(5)),
    "labels": torch.tensor([0, 1, 2] * 4),
}


def fitted(weight: float = 0.7, strength: float | None = 0.01, **settings: Any) -> Any:
    """An adapter with a classifier that has weight."""
    model = adapted(classifier_weight=weight, **settings)
    model.fit_classifier([BATCH], strength=strength)
    return model


def without(model: Any) -> Any:
    """The same model, whose classifier has no weight."""
    model.active_config.classifier_weight = 0.0
    return model


# --- arithmetic


@pytest.mark.parametrize("decomposed", [True, False])
@pytest.mark.parametrize("asked", ASKED)
def test_logits_and_loss_equal_the_reference(asked: list[str] | None, decomposed: bool, pixels: Tensor) -> None:
    templates = ["a photo of a {}.", "the drawing of one {}."]
    model = fitted(dtype=torch.float64, template=templates)
    model.set_savings(Savings() if decomposed else Savings.none())
    model.set_classes(asked)
    names, pixels = model.class_names, pixels.double()
    with torch.no_grad():
        frozen = reference.normalize(reference.encode_image(make_clip(dtype=torch.float64), pixels, None)[0])
        found = model(pixel_values=pixels)
        labelled = model(pixel_values=pixels, labels=LABELS % len(names))
    kind = model.active_config.logits_for(names)
    plain = found[f"logits_{kind}"]
    known = [at for at, name in enumerate(names) if name.lower() in CLASSES]
    rows = model.head.anprompt_classifier["default"][[CLASSES.index(names[at].lower()) for at in known]]
    learned = model.logit_scale.exp() * frozen @ rows.T
    expected = reference.joined(plain, learned, known, 0.7) if known else plain.softmax(dim=1)
    assert_exact(found.logits.softmax(dim=1), expected.detach())
    assert_exact(labelled.logits, found.logits)
    assert known == [] or (found.logits.softmax(dim=1) - plain.softmax(dim=1)).abs().max() > 1e-3
    with torch.no_grad():
        assert_exact(without(model)(pixel_values=pixels, labels=LABELS % len(names)).loss, labelled.loss)


def test_the_adapter_is_at_the_minimum_of_the_reference() -> None:
    model = fitted(dtype=torch.float64)
    pixels, texts = BATCH["pixel_values"].double(), model.head.anprompt_clean_features["default"]
    images = reference.normalize(reference.encode_image(make_clip(dtype=torch.float64), pixels, None)[0]).detach()
    delta = (model.head.anprompt_classifier["default"] - texts).requires_grad_()
    scale, weights = float(model.logit_scale.exp()), torch.ones(3, dtype=torch.float64)
    loss = reference.anchored_loss(images, BATCH["labels"], texts, delta, scale, 0.01, weights)
    assert torch.autograd.grad(loss, delta)[0].abs().max() < 1e-8


@pytest.mark.parametrize("kind", ["class", "prototype", "ensemble", "fused"])
def test_any_kind_of_logits_is_joined(kind: str, pixels: Tensor) -> None:
    model = fitted(dtype=torch.float64, inference_logits=kind)
    with torch.no_grad():
        found = model(pixel_values=pixels.double())
        features = model.frozen_image_features(pixels)
    learned = model.logit_scale.exp() * features @ model.head.anprompt_classifier["default"].T
    expected = found[f"logits_{kind}"].log_softmax(dim=1) + 0.7 * learned.log_softmax(dim=1)
    assert_exact(found.logits, expected.detach())


def test_it_answers_in_evaluation_only_and_not_with_the_adapter_off(pixels: Tensor) -> None:
    model, plain = fitted(), adapted()
    assert not torch.allclose(logits(model, pixels), logits(plain, pixels), atol=1e-2)
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(logits(model, pixels), logits(plain, pixels))
    model.train()
    plain.train()
    assert torch.equal(model(pixel_values=pixels, labels=LABELS).loss, plain(pixel_values=pixels, labels=LABELS).loss)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels).logits, plain(pixel_values=pixels).logits)
    model.eval()
    plain.eval()
    model.set_classes(["red bird", "one fish"])
    plain.set_classes(["red bird", "one fish"])
    assert torch.equal(logits(model, pixels), logits(plain, pixels))
    model.set_classes(None)
    before = logits(model, pixels)
    plain.set_classes(None)
    assert torch.equal(logits(without(model), pixels), logits(plain, pixels))
    model.active_config.classifier_weight = 0.7
    assert torch.equal(logits(model, pixels), before)


def test_a_new_fit_takes_the_place_of_the_old_one(pixels: Tensor) -> None:
    model = fitted(strength=0.3)
    before = logits(model, pixels)
    assert model.fit_classifier([BATCH], strength=0.001) == model.active_config.classifier_strength == 0.001
    assert not torch.allclose(logits(model, pixels), before, atol=1e-2)


def test_images_without_a_label_and_the_number_of_batches_change_nothing() -> None:
    whole, parts = fitted(dtype=torch.float64), adapted(dtype=torch.float64, classifier_weight=0.7)
    ignored = {"pixel_values": BATCH["pixel_values"][:2], "labels": [-100, -100]}
    pairs = zip(BATCH["pixel_values"].split(5), BATCH["labels"].split(5), strict=True)
    parts.fit_classifier([ignored, *({"pixel_values": x, "labels": y} for x, y in pairs)], strength=0.01)
    assert_exact(parts.head.anprompt_classifier["default"], whole.head.anprompt_classifier["default"])


def test_class_weights_count() -> None:
    model = adapted(dtype=torch.float64, classifier_weight=0.7)
    model.set_class_weights([1.0, 5.0, 0.2])
    model.fit_classifier([BATCH], strength=0.01)
    plain = fitted(dtype=torch.float64).head.anprompt_classifier["default"]
    assert (model.head.anprompt_classifier["default"] - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("weight", "batch", "asked", "message"),
    [
        (0.0, BATCH, None, "classifier_weight=0 leaves the classifier out"),
        (0.5, BATCH, ["cat", "dog"], r"\['cat', 'dog'\] are asked for. Call set_classes\(None\)"),
        (
            0.5,
            {"pixel_values": BATCH["pixel_values"]},
            None,
            r"needs pixel_values and labels, it has \['pixel_values'\]",
        ),
        (0.5, {**BATCH, "labels": torch.full((12,), 3)}, None, "labels must lie between 0 and 2"),
        (0.5, {**BATCH, "labels": torch.full((12,), -100)}, None, "at least one image with a label"),
    ],
)
def test_what_cannot_be_fitted_is_refused(weight: float, batch: Any, asked: Any, message: str) -> None:
    model = adapted(classifier_weight=weight)
    model.set_classes(asked)
    with pytest.raises(ValueError, match=message):
        model.fit_classifier([batch])
    assert model.active_config.classifier_strength is None


def test_a_new_adapter_has_none() -> None:
    with pytest.raises(ValueError, match=r"classifier_strength=0\.1 belongs to a classifier that is fitted"):
        adapted(classifier_strength=0.1)


# --- saved and loaded


@pytest.mark.parametrize("settings", [{}, {"low_cpu_mem_usage": True}])
def test_a_saved_adapter_answers_alike(settings: dict[str, Any], tmp_path: Path, pixels: Tensor) -> None:
    model = fitted()
    model.save_pretrained(tmp_path)
    loaded: Any = PeftModel.from_pretrained(make_clip(), tmp_path, **settings).eval()
    assert loaded.active_config.classifier_strength == 0.01
    assert json.loads((tmp_path / CONFIG).read_text())["classifier_weight"] == 0.7
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def test_an_adapter_without_one_has_no_tensor_for_it(tmp_path: Path, pixels: Tensor) -> None:
    model = adapted(classifier_weight=0.5)
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / WEIGHTS) if "classifier" in name]
    loaded = PeftModel.from_pretrained(make_clip(), tmp_path).eval()
    assert torch.equal(logits(loaded, pixels), logits(adapted(), pixels))


@pytest.mark.parametrize("damage", ["nan", "shape", "gone", "unexpected"])
def test_a_damaged_classifier_is_not_loaded(damage: str, tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    (name,) = [each for each in weights if each.endswith(FITTED)]
    if damage == "nan":
        weights[name][0, 0] = torch.nan
    elif damage == "shape":
        weights[name] = weights[name][:2].contiguous()
    elif damage == "gone":
        del weights[name]
    else:
        config = json.loads((tmp_path / CONFIG).read_text())
        (tmp_path / CONFIG).write_text(json.dumps({**config, "classifier_strength": None}))
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    clip = make_clip()
    with pytest.raises(ValueError, match="anprompt_classifier"):
        PeftModel.from_pretrained(clip, tmp_path)
    assert not hasattr(clip, "anprompt_state")


def test_weights_with_a_classifier_do_not_become_those_of_an_adapter_without(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    model = adapted(classifier_weight=0.7)
    with pytest.raises(ValueError, match=r"classifier_strength=None and 0\.01"):
        model.load_adapter(tmp_path, "default")


def test_each_adapter_has_its_own(tmp_path: Path, pixels: Tensor) -> None:
    first = fitted(strength=0.3)
    first.save_pretrained(tmp_path)
    expected = logits(first, pixels)
    model = fitted(strength=0.001)
    own = logits(model, pixels)
    model.load_adapter(tmp_path, "second")
    assert torch.equal(logits(model, pixels), own)
    model.set_adapter("second")
    assert torch.equal(logits(model, pixels), expected)
    model.delete_adapter("second")
    assert torch.equal(logits(model, pixels), own)
    assert [*model.head.anprompt_classifier] == ["default"]


# --- compiled and served


def test_compiled_it_is_one_graph(pixels: Tensor) -> None:
    torch._dynamo.reset()
    model, counter = fitted(), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for asked in (None, ["red bird", "dog", "cat"]):
        model.set_classes(asked)
        assert torch.equal(logits(compiled, pixels), logits(model, pixels))
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_predictions_have_it_whatever_other_threads_ask_for(pixels: Tensor) -> None:
    model, images = fitted(), image_set([0, 1, 2, 0])
    expected = logits(model, images.pixels()).softmax(dim=1)
    answers = predict(model, images.dataset["image"], PROCESSOR, top_k=3, batch_size=2)
    first = next(answers)
    other = threading.Thread(target=model.set_classes, args=(["red bird", "one fish"],))
    other.start()
    other.join()
    for row, answer in enumerate([first, *answers]):
        shares = dict(answer.ranking)
        torch.testing.assert_close(torch.tensor([shares[name] for name in CLASSES]), expected[row])


@pytest.mark.slow
def test_it_is_in_the_onnx_file(tmp_path: Path, pixels: Tensor) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from anprompt_peft.serve import export_onnx

    model = fitted()
    model.set_classes(["red bird", "dog", "cat"])
    export_onnx(model, PROCESSOR, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(model, pixels), rtol=0, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classifier_weight"]) == 0.7


# --- as a fitted method, and as a peer


@pytest.mark.parametrize("shared", [True, False])
def test_cached_features_and_peers_join_as_the_model_does(shared: bool) -> None:
    """What a wrapper joins to the logits of any method equals the adapter's own."""
    from anprompt_peft.anchored import join, known_classes

    shots, images = image_set([0, 0, 1, 1, 2, 2]), image_set([0, 1, 2], seed=1)
    model = adapted(BACKBONE.copy(), classifier_weight=0.7)
    model.fit_classifier([{"pixel_values": shots.pixels(), "labels": shots.labels}], seed=3)
    peer: Any = make_method("anchored-classifier").fit(BACKBONE, shots, BASE, 3)
    assert peer.strength == model.active_config.classifier_strength
    for classes in (BASE, MIXED, NEW, ClassTexts(("dog", "cat"))):
        ours = FittedAdapter(model, frozen=FrozenCLIP(BACKBONE) if shared else None).logits(images, classes)
        model.set_classes(list(classes.names))
        torch.testing.assert_close(ours, logits(model, images.pixels()), rtol=0, atol=1e-6)
        model.set_classes(None)
        plain = FittedAdapter(without(model)).logits(images, classes)
        model.active_config.classifier_weight = 0.7
        at, rows = known_classes(classes.names, peer.names)
        features = BACKBONE.image_features(images)
        joined = join(plain, torch.tensor(at), features, peer.rows[rows], BACKBONE.logit_scale, 0.7)
        torch.testing.assert_close(joined, ours, rtol=0, atol=1e-6)


def test_the_peer_answers_for_its_classes_and_zero_shot_for_others() -> None:
    shots, images = image_set([0, 0, 1, 1, 2, 2]), image_set([0, 1, 2], seed=1)
    peer: Any = make_method("anchored-classifier", strength=0.02).fit(BACKBONE, shots, BASE, 0)
    assert peer.strength == 0.02
    learned = BACKBONE.logit_scale * BACKBONE.image_features(images) @ peer.rows.T
    assert_exact(peer.logits(images, BASE), learned)
    assert_exact(peer.logits(images, NEW), BACKBONE.zero_shot_logits(images, NEW))
    zero_shot = BACKBONE.zero_shot_logits(images, MIXED)
    ours = peer.logits(images, MIXED).softmax(dim=1)
    together = zero_shot.softmax(dim=1)[:, [1, 2]].sum(dim=1, keepdim=True)
    assert_exact(ours[:, [1, 2]], together * learned[:, [2, 0]].softmax(dim=1))
    assert_exact(ours[:, [0, 3]], zero_shot.softmax(dim=1)[:, [0, 3]])


# --- trained


def test_training_ends_with_the_fit(data: Dataset, tmp_path: Path, pixels: Tensor) -> None:
    """Checkpoints, evaluations and the best weights come before it; the same weights result without it."""
    common: dict[str, Any] = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    model = adapted(scattered=False, classifier_weight=0.7)
    trainer = make_trainer(tmp_path / "a", data, model, num_train_epochs=2, **common)
    trainer.train()
    other = make_trainer(tmp_path / "b", data, None, num_train_epochs=2, **common)
    other.train()
    plain = other.model
    plain.active_config.classifier_weight = 0.7
    strength = plain.fit_classifier([data[:]], seed=42)
    assert model.active_config.classifier_strength == strength
    torch.testing.assert_close(logits(model.eval(), pixels), logits(plain.eval(), pixels))
    for checkpoint in (tmp_path / "a").glob("checkpoint-*"):
        assert not [name for name in load_file(checkpoint / WEIGHTS) if "classifier" in name]
    trainer.train(resume_from_checkpoint=True)
    assert model.active_config.classifier_strength == strength


def test_augmented_images_are_fitted_as_they_are(clip_folder: Path, tmp_path: Path) -> None:
    processor = CLIPProcessor.from_pretrained(clip_folder)
    dataset = image_set([0, 1, 2] * 2).dataset
    rows = {}
    for augment in (True, False):
        model = adapted(scattered=False, classifier_weight=0.7)
        train = dataset.with_transform(ClipTransform(processor, augment))
        make_trainer(tmp_path / str(augment), train, model, num_train_epochs=1, save_strategy="no").train()
        rows[augment] = model.head.anprompt_classifier["default"]
    assert torch.equal(rows[True], rows[False])


class Signalled(TrainerCallback):
    """Stops the run after a step, as a signal does in the command."""

    received: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.received = 15
        control.should_training_stop = True


def test_an_interrupted_run_fits_nothing(data: Dataset, tmp_path: Path) -> None:
    model = adapted(scattered=False, classifier_weight=0.7)
    make_trainer(tmp_path, data, model, [Signalled()], save_strategy="no").train()
    assert model.active_config.classifier_strength is None


def test_classes_that_were_not_trained_on_end_training_before_it_starts(data: Dataset, tmp_path: Path) -> None:
    model = adapted(scattered=False, classifier_weight=0.7)
    model.set_classes(["cat", "dog", "red bird"])
    trainer: ANPromptTrainer = make_trainer(tmp_path, data, model)
    with pytest.raises(ValueError, match=r"are asked for\. Call set_classes"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("streamed", "reason"), [(True, "A stream of training data may have no end"), (False, "images of 3 classes make")]
)
def test_what_cannot_be_fitted_is_said_before_training(
    streamed: bool, reason: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(trainer_module, "MOST_PAIRS", 1)
    model = adapted(scattered=False)
    train_on: Any = data.to_iterable_dataset() if streamed else data
    make_trainer(tmp_path, train_on, model, max_steps=2, warmup_epochs=None).train()
    warnings = [each.getMessage() for each in caplog.records if "no classifier will be fitted" in each.getMessage()]
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert model.active_config.classifier_strength is None


def test_the_command_fits_it_and_records_its_weight(digits: Path, tmp_path: Path) -> None:
    assert train_by_command(digits, tmp_path / "run", "--classifier-weight", 0.5) == 0
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    assert (config["classifier_weight"], config["classifier_strength"]) == (0.5, 0.03)  # one image of each class
    assert [name for name in load_file(tmp_path / "run" / WEIGHTS) if name.endswith(FITTED)]
    record = (tmp_path / "run" / "run.yaml").read_text()
    assert "classifier_weight: 0.5" in record
    assert "classifier_strength" not in record
