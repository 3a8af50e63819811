"""The report: its figures and tables, the page as a file, and the page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from threading import Event, get_ident
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPModel

import chromium
from anprompt_peft.evaluation import balanced_accuracy, base_to_new, gain, macro_f1
from anprompt_peft.evaluation.tables import class_rows, confused_block, confused_pairs, confusions, count_confusions
from anprompt_peft.provenance import provenance
from anprompt_peft.report import (
    Geometry,
    Predictions,
    ReportData,
    describe_adapter,
    predict,
    read_geometry,
    render_report,
    write_report,
)
from anprompt_peft.report.charts import feature_chart, loss_chart
from anprompt_peft.report.data import LossTable, loss_table, project
from anprompt_peft.report.page import shown
from conftest import IMAGE_SIZE
from helpers import CLASSES, adapted, make_clip, make_config, make_trainer, marks, texts

HOSTILE = ["<script>alert(1)</script>", "a & b", "\"><img src=x onerror='alert(1)'>", "猫 الكلب", "unbroken" * 20]
BINARY = chromium.BINARY
DOCUMENT = Path(__file__).parents[1] / "docs" / "report.md"


def picture(row: int) -> Image.Image:
    """A colourful image of 200 x 150 pixels, or of 32 x 32 for every third row."""
    colours = np.random.default_rng(row).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((32, 32) if row % 3 == 0 else (200, 150), Image.Resampling.BICUBIC)


def make_predictions(
    classes: int, images: int, name: str = "test", accuracy: float = 0.7, seed: int = 0
) -> Predictions:
    """Predictions with some frequent confusions, on classes whose first names try to break the page."""
    rng = np.random.default_rng(seed)
    names = [f"{HOSTILE[at] if at < len(HOSTILE) else 'kind'} {at}" for at in range(classes)]
    labels = np.random.default_rng(1).integers(classes, size=images)
    wrong = (labels + rng.choice([1, 2], size=images, p=[0.8, 0.2])) % classes
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), np.where(rng.random(images) < accuracy, labels, wrong)] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sources = [f"folder <{label}>/image-{row}.jpg" for row, label in enumerate(labels)]
    return Predictions(name, names, labels, probabilities.argmax(axis=1), probabilities, picture, sources)


def make_geometry(class_names: Sequence[str]) -> Geometry:
    rng = np.random.default_rng(2)
    clean = rng.normal(size=(len(class_names), 16))
    prompted, perturbed = (clean + 0.1 * rng.normal(size=clean.shape) for _ in range(2))
    return Geometry(class_names, clean, prompted, perturbed, rng.normal(size=(4, 16)), "A <b>note</b>.")


def make_history(epochs: int = 10) -> list[dict[str, float]]:
    """A log like Trainer's: per epoch a training and an evaluation record, and a summary at the end."""
    log: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        loss = 2.0**-epoch
        log.append({"loss": loss, "waloss": loss / 100, "similarity_text": 0.0, "grad_norm": 1.0, "epoch": epoch})
        log.append({"eval_loss": 2 * loss, "eval_runtime": 1.0, "epoch": epoch})
    return [*log, {"train_runtime": 9.0, "train_loss": 0.5, "epoch": epochs}]


def make_report(classes: int = 5, images: int = 120, halves: int = 2) -> ReportData:
    names = ["base", "new"] if halves == 2 else ["test"]
    predictions = [make_predictions(classes, images, name) for name in names]
    zero_shot = [make_predictions(classes, images, name, accuracy=0.5, seed=1) for name in names]
    return ReportData(
        "A report & more",
        predictions,
        zero_shot if halves == 2 else [],
        make_history(),
        make_geometry(predictions[0].class_names),
        {"base model": "some/clip", "classes": predictions[0].class_names, "seed": 1234, "rank": None, "alpha": 0.7},
        provenance(),
        ["A note with <i>tags</i>."],
    )


# --- tables


@pytest.fixture
def hand_made() -> Predictions:
    """Four classes, of which `d` has no images; `a` is read as `b` three times and `b` as `a` once."""
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([1, 0, 1, 1, 1, 0, 2])
    probabilities = np.full((7, 4), 0.1)
    probabilities[[0, 2, 3], 1] = [0.5, 0.9, 0.6]
    probabilities[4, 1] = 0.8
    return Predictions("test", ["a", "b", "c", "d"], labels, predicted, probabilities, sources=list("stuvwxy"))


def test_classes_are_ranked_by_accuracy(hand_made: Predictions) -> None:
    zero_shot = Predictions("test", hand_made.class_names, hand_made.labels, hand_made.labels)
    rows = class_rows(hand_made, zero_shot)
    assert [(row.name, row.right, row.images, row.zero_shot_right, row.mistaken_for) for row in rows] == [
        ("a", 1, 4, 4, ("b", 3)),
        ("b", 1, 2, 2, ("a", 1)),
        ("c", 1, 1, 1, None),
        ("d", 0, 0, 0, None),
    ]
    assert rows[0].accuracy == 0.25
    assert class_rows(hand_made, None)[0].zero_shot_right is None


def test_confusions_are_counted_and_ranked(hand_made: Predictions) -> None:
    counts = count_confusions(hand_made)
    assert counts.tolist() == [[1, 3, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confused_pairs(counts) == [(0, 1), (1, 0)]


def test_block_holds_the_most_confused_classes() -> None:
    counts = np.diag([9] * 6)
    counts[4, 5], counts[1, 0], counts[3, 5], counts[2, 3] = 5, 4, 3, 1
    assert confused_block(counts, 4) == [0, 1, 4, 5]
    assert confused_block(counts, 5) == [0, 1, 3, 4, 5]
    assert confused_block(np.diag([9] * 6), 4) == []


def test_example_images_are_the_surest_ones(hand_made: Predictions) -> None:
    first, second = confusions(hand_made, limit=5)
    assert (first.actual, first.read_as, first.count, first.images) == ("a", "b", 3, 4)
    assert (first.mistake.row, first.mistake.source, first.mistake.read, first.mistake.actual) == (2, "u", 0.9, 0.1)
    assert first.right is not None
    assert (first.right.row, first.right.read) == (4, 0.8)
    assert second.right is not None
    assert second.right.row == 1
    assert len(confusions(hand_made, limit=1)) == 1


def test_examples_without_probabilities_or_right_images() -> None:
    labels, predicted = np.array([0, 0, 1]), np.array([1, 1, 0])
    first, _ = confusions(Predictions("test", ["a", "b"], labels, predicted), limit=5)
    assert (first.mistake.row, first.mistake.source, first.mistake.read, first.right) == (0, "", None, None)
    assert "No image of b was classified correctly." in render_report(
        ReportData("t", [Predictions("test", ["a", "b"], labels, predicted)])
    )


# --- pictures


def table_of(history: Sequence[dict[str, Any]]) -> LossTable:
    table = loss_table(history)
    assert table is not None
    return table


def test_loss_table_joins_records_of_one_time() -> None:
    table = table_of(make_history(3))
    assert (table.time, list(table.columns)) == ("epoch", ["loss", "waloss", "similarity_text", "eval_loss"])
    assert table.columns["eval_loss"] == "loss"
    assert table.rows[1] == {"epoch": 2, "loss": 0.25, "similarity_text": 0.0, "waloss": 0.0025, "eval_loss": 0.5}
    assert len(table.rows) == 3
    assert loss_table([{"train_runtime": 1.0}]) is None
    by_step = table_of([{"loss": 1.0, "step": 20}, {"loss": 2.0, "step": 10, "epoch": 1}])
    assert [row["step"] for row in by_step.rows] == [10, 20]
    with pytest.raises(ValueError, match="'epoch'"):
        loss_table([{"loss": 1.0}])


def test_every_term_of_the_log_is_shown() -> None:
    """Terms are those that were logged beside the loss, whatever they are called; what Trainer logs itself is none."""
    train = {"loss": 1.0, "brand new": 0.5, "c.d": 0.25, "grad_norm": 9.0, "learning_rate": 0.1, "step": 5, "epoch": 1}
    evaluation = {"eval_loss": 2.0, "eval_brand new": 0.75, "eval_accuracy": 0.9, "eval_runtime": 3.0, "epoch": 1}
    history: list[dict[str, float]] = [
        {**train, "num_input_tokens_seen": 7, "train_tokens_per_second": 8.0},
        evaluation,
        {"loss": 0.5, **evaluation, "epoch": 3},
        {"eval_far_loss": 4.0, "epoch": 1},
        {"c.d": 1, "epoch": 2},
    ]
    table = table_of(history)
    assert table.columns == {
        "loss": "loss", "brand new": "brand new", "c.d": "c.d",
        "eval_loss": "loss", "eval_brand new": "brand new", "eval_far_loss": "loss",
    }  # fmt: skip
    page = render_report(ReportData("t", history=history))
    assert set(marks(page)) == {
        "loss 1 at epoch 1", "loss 0.5 at epoch 3", "brand new 0.5 at epoch 1", "c.d 0.25 at epoch 1",
        "c.d 1 at epoch 2", "eval_loss 2 at epoch 1", "eval_loss 2 at epoch 3", "eval_brand new 0.75 at epoch 1",
        "eval_brand new 0.75 at epoch 3", "eval_far_loss 4 at epoch 1",
    }  # fmt: skip
    legend = page[page.index('<ul class="legend">') :].partition("</ul>")[0]
    assert re.findall(r"</i>\s*(\S.*?) <span", legend) == list(table.columns)


def test_lines_of_many_terms_look_different() -> None:
    history = [{"loss": 1.0, **{f"term {at}": 0.5 for at in range(24)}, "epoch": 1}]
    page = render_report(ReportData("t", history=history))
    assert len(set(re.findall(r'<i class="key line" style="(.*?)".*?>(.)</i>', page))) == 25


def test_loss_chart_is_logarithmic() -> None:
    """Halving the loss moves it down by the same distance; zero lies at the lower end; NaN is left out."""
    table = table_of([*make_history(5), {"loss": math.nan, "epoch": 6}])
    chart = loss_chart(table)
    found = marks(chart)
    heights = [found[f"loss {2.0**-epoch:.4g} at epoch {epoch}"][1] for epoch in range(1, 6)]
    assert np.diff(heights) == pytest.approx([heights[1] - heights[0]] * 4)
    assert heights[1] > heights[0]
    assert len(found) == 4 * 5
    assert {found[f"similarity_text 0 at epoch {epoch}"][1] for epoch in range(1, 6)} == {
        max(y for _, y in found.values())
    }
    assert "drawn at the lower edge" in render_report(ReportData("t", history=make_history(5)))
    _, _, width, height = map(float, re.findall(r'viewBox="(.*?)"', chart)[0].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in found.values())


def test_dense_lines_have_no_marks() -> None:
    table = table_of(make_history(41))
    assert marks(loss_chart(table)) == {}


@pytest.mark.parametrize("values", [(0.998, 1.001), (0.9, 4.0), (1e-9, 1.0), (3.0, 3.0), (2e6, 5e6)])
def test_loss_scale_has_some_numbers(values: tuple[float, float]) -> None:
    table = table_of([{"loss": value, "epoch": at} for at, value in enumerate(values)])
    drawn = texts(loss_chart(table))
    assert 2 <= len(drawn[drawn.index("epoch") + 1 :]) <= 9


@pytest.mark.parametrize(
    "record", [{"loss": 0.0, "epoch": 0}, {"loss": math.nan, "step": 3}, {"loss": 1.0, "epoch": 1}]
)
def test_loss_chart_of_one_record(record: dict[str, float]) -> None:
    page = render_report(ReportData("t", history=[record]))
    assert set(marks(page)) == {
        f"loss {value:g} at {time} {at:g}" for (_, value), (time, at) in [record.items()] if value == value
    }
    assert not re.search("nan|inf", page[page.index("<svg") : page.index("</svg>")])


def test_plane_is_the_one_of_largest_spread() -> None:
    """Against a singular value decomposition written out, with the sign that makes the largest loading positive."""
    geometry = make_geometry(["a", "b", "c"])
    plane = project(geometry)
    assert geometry.perturbed is not None
    assert geometry.noise_prompts is not None
    given = {
        "perturbed": geometry.perturbed,
        "clean": geometry.clean,
        "prompted": geometry.prompted,
        "noise prompt": geometry.noise_prompts,
    }
    rows = np.concatenate(list(given.values()))
    _, spread, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None]
    for kind, features in given.items():
        np.testing.assert_allclose(plane.points[kind], (features - rows.mean(axis=0)) @ axes.T, atol=1e-10)
    assert plane.explained == pytest.approx((spread**2 / (spread**2).sum())[:2])


def test_feature_chart_keeps_proportions_and_shows_few_names() -> None:
    names = [f"class {at}" for at in range(20)]
    plane = project(make_geometry(names))
    chart = feature_chart(names, plane)
    found = marks(chart)
    assert len(found) == 3 * 20 + 4
    drawn = np.array([found[f"{name}, prompted"] for name in names]) * (1, -1)
    scale = np.ptp(drawn, axis=0) / np.ptp(plane.points["prompted"], axis=0)
    assert scale[0] == pytest.approx(scale[1])
    assert len(set(texts(chart)) & set(names)) > 10
    many = [f"class {at}" for at in range(200)]
    assert len(texts(feature_chart(many, project(make_geometry(many))))) == 2


def test_charts_show_names_as_they_are() -> None:
    """No formula, no character that XML forbids, and characters that matplotlib's own font lacks without a warning."""
    names = ["$5 and $6", "a\x07b", "\ud800", "猫", "x^2 & <y>"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = feature_chart(names, project(make_geometry(names)))
    assert {"$5 and $6", r"a\x07b", r"\ud800", "猫", "x^2 & <y>"} <= set(texts(chart))
    assert "x^2 & <y>, clean" in marks(chart)


def test_charts_are_the_same_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever matplotlib is set to, beside another thread that draws, and without a change of its settings."""
    data = ReportData("t", history=make_history(3))
    expected = render_report(data)
    draw, drawing, second_began, first_ended = FigureCanvasSVG.print_svg, [0], Event(), Event()

    def draw_beside(*given: Any) -> None:
        if get_ident() not in drawing:
            drawing.append(get_ident())
            if len(drawing) == 2:
                second_began.wait(0.3)
            else:
                second_began.set()
                first_ended.wait(5)
        draw(*given)

    def render(_: int) -> str:
        page = render_report(data)
        first_ended.set()
        return page

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", draw_beside)
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        with ThreadPoolExecutor(2) as pool:
            pages = list(pool.map(render, range(2)))
        assert dict(matplotlib.rcParams) == before
    assert set(pages) == {expected}


def test_charts_have_the_colours_of_the_page() -> None:
    page = render_report(make_report())
    for chart in re.findall("<svg.*?</svg>", page, re.DOTALL):
        colours = re.findall(r"(?:fill|stroke): (.*?)[;\"]", chart)
        assert colours
        of_page = re.compile(r"none|var\(--(text|soft|line|card|c\d)\)")
        assert [colour for colour in colours if not of_page.fullmatch(colour)] == []
        assert "<style" not in chart
        assert "font-family" not in chart


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([], int), "predicted": np.array([], int)}, "no images"),
        ({"labels": np.array([0, 3])}, "labels must lie between 0 and 1"),
        ({"predicted": np.array([-1, 0])}, "predicted must lie between 0 and 1"),
        ({"predicted": np.array([0])}, "predicted must be 2 integers"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be 2 integers, got float64"),
        ({"probabilities": np.ones((2, 3))}, r"probabilities must have shape \(2, 2\)"),
        ({"sources": ["one"]}, "sources must name all 2 images, got 1"),
    ],
)
def test_wrong_predictions_are_refused(change: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"labels": np.array([0, 1]), "predicted": np.array([0, 0])}
    Predictions("test", ["a", "b"], **right)
    with pytest.raises(ValueError, match=message):
        Predictions("test", ["a", "b"], **{**right, **change})


def test_wrong_report_data_are_refused() -> None:
    part, other = make_predictions(3, 20), make_predictions(4, 20)
    with pytest.raises(ValueError, match="one set or two"):
        ReportData("t", [part, part, part])
    for zero_shot in ([other], [part, part]):
        with pytest.raises(ValueError, match="same images and classes"):
            ReportData("t", [part], zero_shot)
    features = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"prompted must have shape \(3, 4\)"):
        Geometry(["a", "b", "c"], features, features[:2])
    with pytest.raises(ValueError, match=r"noise_prompts must have shape \(K, 4\)"):
        Geometry(["a", "b", "c"], features, features, noise_prompts=np.zeros((2, 5)))


# --- what is read out of a model


@torch.no_grad()
def test_geometry_of_a_model() -> None:
    """The adapter's own classes are read, whatever classes are asked for, in float64 and without any change."""
    model = adapted(dtype=torch.float64)
    prompted = model.encode_classes()
    with model.disable_adapter():
        clean = model.encode_classes()
    model.set_classes(["one", "two"])
    geometry = read_geometry(model)
    assert model.class_names == ["one", "two"]
    assert geometry.class_names == tuple(CLASSES)
    np.testing.assert_allclose(geometry.prompted, prompted.numpy(), atol=1e-12)
    np.testing.assert_allclose(geometry.clean, clean.numpy(), atol=1e-12)
    assert geometry.noise_prompts is not None
    np.testing.assert_array_equal(geometry.noise_prompts, model.visual_projection.anprompt_noise_prompts["default"])
    np.testing.assert_array_equal(geometry.perturbed, model.visual_projection.anprompt_perturbed_features["default"])
    assert geometry.note == ""
    assert "noise prompt 4" in render_report(ReportData("t", geometry=geometry))


def test_noise_prompts_of_another_space_are_left_out() -> None:
    geometry = read_geometry(adapted(latent_dim=10))
    assert geometry.noise_prompts is None
    assert "latent space of 10 dimensions" in geometry.note
    page = render_report(ReportData("t", geometry=geometry))
    assert "latent space of 10 dimensions" in page
    assert "noise prompt 1" not in page
    assert read_geometry(adapted(latent_dim=10, noise_map="learned")).noise_prompts is not None


def test_predictions_of_a_model() -> None:
    model = adapted(inference_logits="class").train()
    model.get_base_model().text_model.eval()
    modes = [module.training for module in model.modules()]
    pixels = torch.randn(7, 3, IMAGE_SIZE, IMAGE_SIZE)
    rows = [{"pixel_values": image, "labels": at % 3} for at, image in enumerate(pixels)]
    found = predict(model, DataLoader(rows, batch_size=3), "test", picture, list("abcdefg"))  # type: ignore[arg-type]
    with model.disable_adapter():
        zero_shot = predict(model, DataLoader(rows, batch_size=7), "test")  # type: ignore[arg-type]
    assert model.training
    assert [module.training for module in model.modules()] == modes
    model.eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.softmax(dim=-1)
        with model.disable_adapter():
            frozen = model(pixel_values=pixels).logits.softmax(dim=-1)
    assert found.probabilities == pytest.approx(expected.numpy(), abs=1e-6)
    assert zero_shot.probabilities == pytest.approx(frozen.numpy(), abs=1e-6)
    assert not torch.allclose(expected, frozen, atol=1e-3)
    assert found.predicted.tolist() == expected.argmax(dim=-1).tolist()
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (list(found.class_names), found.image, found.sources) == (CLASSES, picture, list("abcdefg"))
    with pytest.raises(ValueError, match="shuffle=False"):
        predict(model, DataLoader(rows, shuffle=True), "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images in the batches of 'new'"):
        predict(model, [], "new")


def test_adapter_is_described() -> None:
    """With a second adapter in, the size is still that of the active one."""
    model = adapted()
    size, _ = model.get_nb_trainable_parameters()
    model.add_adapter("other", make_config(num_virtual_tokens=2))
    facts = describe_adapter(model)
    assert facts["adapter parameters"] == f"{size:,}"
    assert (facts["classes"], facts["text_layers"], facts["num_noise_tokens"]) == (CLASSES, [3, 4], 4)


def test_a_plain_clip_is_refused() -> None:
    for read in (read_geometry, describe_adapter, lambda clip: predict(clip, [], "test")):
        with pytest.raises(TypeError, match="with an ANPrompt adapter, not CLIPModel"):
            read(make_clip())


def test_report_of_a_training(data: Dataset, tmp_path: Path) -> None:
    """From Trainer to the file: the page says what the training measured."""
    model = adapted(scattered=False)
    settings: Any = dict.fromkeys(("eval_strategy", "logging_strategy"), "epoch")
    trainer = make_trainer(tmp_path / "run", data, model, save_strategy="no", **settings)
    trainer.train()
    part = predict(model, trainer.get_eval_dataloader(), "test", picture)
    data_shown = ReportData(
        "Run", [part], [], trainer.state.log_history, read_geometry(model), describe_adapter(model), provenance()
    )
    page = write_report(data_shown, tmp_path / "report.html").read_text()
    last = [record["eval_waloss"] for record in trainer.state.log_history if "eval_waloss" in record][-1]
    assert f"<td>{last:.4g}</td>" in page
    assert set(table_of(trainer.state.log_history).terms) == {"loss", *model(**data[:]).loss_terms}
    assert f'<span class="figure">{100 * part.hits.mean():.1f}</span>' in page
    assert torch.__version__ in page


def test_documented_example_runs(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/report.md as printed, on a folder of images."""
    model = adapted(CLIPModel.from_pretrained(clip_folder), tokenizer_name_or_path=str(clip_folder))
    model.save_pretrained(str(tmp_path / "my-adapter"))
    for at, name in enumerate(CLASSES * 2):
        folder = tmp_path / "photos" / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        picture(at).save(folder / f"{at}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    exec(code[1], {})
    page = (tmp_path / "report.html").read_text()
    assert "test: 6 images, 3 classes of 2 images." in page
    assert "zero-shot CLIP" in page


# --- the page as a file


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_names_cannot_break_the_page() -> None:
    """Whatever classes, files, notes and settings are called, it is shown as text."""
    data = make_report()
    page = Elements(render_report(data))
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "b", "iframe", "object", "embed", "base"})
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    text = "".join(page.text)
    for shown_as in (*data.predictions[0].class_names, *data.notes, "A <b>note</b>.", "A report & more"):
        assert shown_as in text
    mistake = confusions(data.predictions[0], 1)[0].mistake
    assert f"row {mistake.row}, {mistake.source}" in text


def test_page_refers_to_nothing_outside() -> None:
    page = render_report(make_report())
    references = [
        value
        for _, attributes in Elements(page).found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "background")
    ]
    assert references
    assert all(value is not None and value.startswith(("data:", "#")) for value in references)
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(attributes["content"] for tag, attributes in Elements(page).found if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_images_are_small_pngs_with_words() -> None:
    images = [attributes for tag, attributes in Elements(render_report(make_report())).found if tag == "img"]
    assert len(images) == 24
    for attributes in images:
        kind, _, content = str(attributes["src"]).partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        image.load()
        assert max(image.size) <= 160
        assert (attributes.get("class") == "tiny") == (image.size == (32, 32))
        assert re.match(r"row \d+: an image of .+, predicted as .+", str(attributes["alt"]))


def test_figures_are_those_of_the_evaluation() -> None:
    data = make_report()
    text = text_of(data)
    for parts in (data.predictions, data.zero_shot):
        base, new = (part.hits[None] for part in parts)
        result = base_to_new(base, new)
        for estimate in (result.base, result.new, result.harmonic_mean):
            assert str(estimate) in text


def text_of(data: ReportData) -> str:
    """A page's text, with single spaces."""
    return " ".join("".join(Elements(render_report(data)).text).split())


def right_in(count: int, name: str = "test", images: int = 1000) -> Predictions:
    """Predictions of which the first `count` are right."""
    labels = np.arange(images) % 2
    return Predictions(name, ["a", "b"], labels, np.where(np.arange(images) < count, labels, 1 - labels))


@pytest.mark.parametrize(
    ("ours", "before", "shown_as", "interval", "is_below"),
    [
        (831, 696, "+13.5 points over zero-shot CLIP, 83.1 against 69.6 %", "+1", False),
        (664, 696, "-3.2 points below zero-shot CLIP, 66.4 against 69.6 %", "-4", True),
        (696, 696, "+0.0 points against zero-shot CLIP, 69.6 against 69.6 %", "+0.0 to +0.0", False),
    ],
)
def test_the_gain_comes_first(ours: int, before: int, shown_as: str, interval: str, is_below: bool) -> None:
    """Below the title there is nothing before it, and a loss is said in the same place."""
    data = ReportData("A title", [right_in(ours)], [right_in(before)], notes=["A note."], settings={"seed": 1})
    assert f" A title {shown_as} 95 % interval of the difference: {interval}" in text_of(data)
    assert ('<div class="below">' in render_report(data)) == is_below


@pytest.mark.parametrize(("ours", "is_below"), [(900, False), (700, True)])
def test_the_linear_probe_stands_beside(ours: int, is_below: bool) -> None:
    """In the headline and in the table, in the colour of a loss where the adapter is below."""
    data = ReportData("A title", [right_in(ours)], [right_in(600)], probe=[right_in(800)])
    text, page = text_of(data), render_report(data)
    words = "+10.0 points over" if ours == 900 else "-10.0 points below"
    assert f"{words} a linear probe, {ours / 10:.1f} against 80.0 %" in text
    assert re.findall(r'<th scope="row">(zero-shot CLIP|a linear probe|ANPrompt)</th>', page) == [
        "zero-shot CLIP", "a linear probe", "ANPrompt",
    ]  # fmt: skip
    assert ('<div class="below">' in page, '<td data-label="test" class="below">' in page) == (is_below, is_below)
    with pytest.raises(ValueError, match="probe must be about the same images"):
        ReportData("t", [right_in(5)], probe=[right_in(5, images=10)])


def test_gains_of_both_halves_come_first() -> None:
    data = ReportData(
        "A title", [right_in(900, "base"), right_in(600, "new")], [right_in(700, "base"), right_in(650, "new")]
    )
    text = text_of(data)
    before, after = 2 * 70 * 65 / 135, 2 * 90 * 60 / 150
    shown_as = [
        "A title base +20.0 points over zero-shot CLIP, 90.0 against 70.0 %",
        "new -5.0 points below zero-shot CLIP, 60.0 against 65.0 %",
        f"harmonic mean {after - before:+.1f} points over zero-shot CLIP, {after:.1f} against {before:.1f} %",
    ]
    places = [text.index(part) for part in shown_as]
    assert places == sorted(places)
    assert places[-1] < text.index("Accuracy on base and new classes")
    low, high = re.findall(r"difference: (\S+) to (\S+)", text)[0]
    result = gain(
        data.predictions[0].hits[None], data.predictions[1].hits[None], data.zero_shot[0].hits, data.zero_shot[1].hits
    )
    assert (low, high) == (f"{result.base.low:+.1f}", f"{result.base.high:+.1f}")


def test_without_zero_shot_there_is_no_gain() -> None:
    assert "points" not in text_of(ReportData("A title", [right_in(600)]))


def test_settings_come_after_the_results_and_folded() -> None:
    page = render_report(make_report())
    folded = page.index("<details>\n<summary><h2>Settings and versions</h2></summary>")
    assert page.index('<table class="results">') < folded < page.index("some/clip") < page.index(torch.__version__)


def test_imbalanced_parts_show_balanced_figures() -> None:
    """Beside the accuracy of both methods, for the imbalanced part alone."""
    labels = np.array([0] * 8 + [1] * 2)
    uneven = [Predictions("new", ["a", "b"], labels, np.array(predicted)) for predicted in ([0] * 10, [0] * 9 + [1])]
    even = [right_in(6, "base", 10), right_in(8, "base", 10)]
    text = text_of(ReportData("t", [even[0], uneven[0]], [even[1], uneven[1]]))
    assert re.findall(r"balanced accuracy (\S+), macro-F1 (\S+)", text) == [
        (f"{balanced_accuracy(part):.1f}", f"{macro_f1(part):.1f}") for part in (uneven[1], uneven[0])
    ]
    assert "base: 10 images, 2 classes of 5 images. new: 10 images, 2 classes of 2 to 8 images. In balanced" in text
    assert "balanced" not in text_of(ReportData("t", even[:1], even[1:]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/alice/models/tiny_clip", "tiny_clip"),
        ("/home/alice/models/", "models"),
        (Path("/home/alice/run"), "run"),
        ("C:\\Users\\alice\\clip", "clip"),
        ("C:/Users/alice/clip", "clip"),
        ("\\\\server\\alice\\home\\clip", "clip"),
        (["/home/alice/a", "b"], "a, b"),
        ({"data": "/home/alice/photos"}, "data photos"),
        ("openai/clip", "openai/clip"),
        ("outputs/alice", "outputs/alice"),
        ("/", "/"),
        ("a / b", "a / b"),
    ],
)
def test_local_folders_are_hidden(given: Any, expected: str) -> None:
    assert shown(given) == expected
    page = render_report(ReportData("t", settings={"given": given}, provenance={"made": given}))
    assert ("alice" in page) == ("alice" in expected)


def test_examples_hide_local_folders() -> None:
    part = Predictions("test", ["a", "b"], np.array([0]), np.array([1]), sources=["/home/alice/a/1.jpg"])
    page = render_report(ReportData("t", [part]))
    assert "row 0, 1.jpg" in page
    assert "alice" not in page


@pytest.mark.parametrize("classes", [2, 20, 21, 200])
def test_large_results_are_shortened_but_complete(classes: int) -> None:
    """Bars and matrix show a part of many classes; the tables below list every class and every confusion."""
    data = make_report(classes, 30 * classes, halves=1)
    page = render_report(data)
    matrix = page[page.index('<table class="matrix"') :].partition("</table>")[0]
    bars = page[page.index('<table class="bars"') :].partition("</table>")[0]
    few = classes <= 20
    assert matrix.count("<tr>") - 1 == (classes if few else 10)
    assert bars.count('class="fill"') == min(classes, 20)
    assert re.findall(r"(\d+) more in the table", bars) == ([] if few else [str(classes - 20)])
    assert ("<span>others</span>" in matrix) == (not few)
    counts = count_confusions(data.predictions[0])
    if not few:
        block = confused_block(counts, 10)
        rest = re.findall(r'<td class="rest">(\d+)</td>', matrix)
        assert [int(count) for count in rest] == (counts[block].sum(axis=1) - counts[block][:, block].sum(1)).tolist()
    confusions_table = page[page.index('aria-label="All confusions of test"') :].partition("</table>")[0]
    listed = [int(count) for count in re.findall(r"<td>(\d+)</td></tr>", confusions_table)]
    assert sum(listed) == counts.sum() - counts.trace()
    assert listed == sorted(listed, reverse=True)
    classes_table = page[page.index('aria-label="All classes of test"') :].partition("</table>")[0]
    assert classes_table.count('<th scope="row" class="name">') == classes


def test_perfect_and_empty_results_render() -> None:
    part = make_predictions(30, 300)
    perfect = Predictions("test", part.class_names, part.labels, part.labels)
    assert "No image was misclassified." in render_report(ReportData("t", [perfect]))
    page = Elements(render_report(ReportData("Nothing")))
    assert [tag for tag, _ in page.found if tag in ("h1", "h2", "section")] == ["h1"]


def test_settings_are_short_text() -> None:
    assert shown(None) == "none"
    assert shown(True) == "True"
    assert shown(1234) == "1234"
    assert shown(0.1 + 0.2) == "0.3"
    assert shown({"a_b": [1, 2], "c": {"d": None}}) == "a_b 1, 2; c d none"
    assert shown(range(3)) == "range(0, 3)"
    assert shown([str(number) for number in range(100)]) == "0, 1, 2, 3, 4, 5, 6, 7, … (100 in all)"


def test_file_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable image and a full disk leave the older report as it was, and nothing beside it."""
    path = tmp_path / "made" / "report.html"
    good = make_report()
    assert write_report(good, path) == path
    written = path.read_bytes()
    write_report(good, str(path))
    assert path.read_bytes() == written
    assert written.decode() == render_report(good)

    def broken(row: int) -> Image.Image:
        raise OSError(f"cannot read image {row}")

    part = good.predictions[0]
    bad = Predictions("test", part.class_names, part.labels, part.predicted, image=broken)
    with pytest.raises(OSError, match="cannot read image"):
        write_report(ReportData("t", [bad]), path)

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(ReportData("Other"), path)
    assert path.read_bytes() == written
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_file_names_of_any_bytes_are_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    part = Predictions("test", ["a", "b"], np.array([0]), np.array([1]), sources=[name])
    assert r"caf\udce9.jpg" in write_report(ReportData("t", [part]), tmp_path / "report.html").read_text("utf-8")


# --- the page in a browser

CONTRAST = """
(() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => top.slice(0, 3).map((value, i) => value * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    if (!element) return [255, 255, 255, 1];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = colour => colour.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll('main :not(title)')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element), background = behind(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(over(parse(ink), background)), light(background)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 120)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()
"""
REPEATED = "[...document.querySelectorAll('[id]')].map(({id}) => id).filter((id, at, all) => all.indexOf(id) !== at)"
NARROWEST_NAME = "Math.min(...[...document.querySelectorAll('tbody .name')].map(cell => cell.offsetWidth))"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    if BINARY is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with chromium.browser() as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page) -> chromium.Page:
    browser.complaints.clear()
    browser.requests.clear()
    return browser


def test_the_browser_reports_what_it_should(page: chromium.Page, tmp_path: Path) -> None:
    """The checks below can fail: a violation, a failed load and an exception are all noticed."""
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    for body in (
        f"{policy}<script>1</script>",
        f"{policy}<img src='data:image/png;base64,AAAA'>",
        "<img src='missing.png'>",
        "<script>throw 1</script>",
        "<script>console.log('x')</script>",
    ):
        page.complaints.clear()
        (tmp_path / "bad.html").write_text(body)
        page.open((tmp_path / "bad.html").as_uri())
        assert page.complaints, body
    assert any(address.endswith("missing.png") for address in page.requests)


@pytest.mark.parametrize(
    ("classes", "halves"), [(5, 2), (2, 1), (20, 1), pytest.param(1000, 1, marks=pytest.mark.slow)]
)
def test_page_renders(classes: int, halves: int, page: chromium.Page, tmp_path: Path) -> None:
    """No complaint, nothing fetched, all images decoded, every heading, no sideways scrolling, readable text."""
    path = write_report(make_report(classes, min(20 * classes, 4000), halves), tmp_path / "report.html")
    for width, scheme, media in (
        (1280, "light", "screen"), (1280, "dark", "screen"), (400, "light", "screen"), (400, "dark", "screen"),
        (760, "light", "print"),
    ):  # fmt: skip
        page.show(width, scheme, media)
        page.open(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(NARROWEST_NAME) >= 90
        lowest, where = page.evaluate(CONTRAST)[0]
        assert lowest >= 4.5, f"{width} {scheme} {where}"
        assert page.badly_placed() == []
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert page.evaluate(REPEATED) == []
    widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == halves * 2 * min(6, classes * (classes - 1))
    assert all(widths)
    parts = ["base", "new"] if halves == 2 else ["test"]
    assert page.evaluate("[...document.querySelectorAll('h1, h2')].map(heading => heading.innerText)") == [
        "A report & more",
        "Accuracy on base and new classes" if halves == 2 else "Accuracy",
        "Settings and versions",
        "Loss terms",
        "Class features and noise prompts in 2-D",
        *(
            f"{panel}: {part}"
            for part in parts
            for panel in ("Accuracy by class", "Confusion matrix", "Most-confused pairs")
        ),
    ]
    assert page.evaluate("document.title") == "A report & more"
    assert page.complaints == []
    assert {address for address in page.requests if not address.startswith("data:")} == {path.as_uri()}


def test_schemes_look_different(page: chromium.Page, tmp_path: Path) -> None:
    """Screenshots: the light page is light, the dark one dark, and neither is blank."""
    path = write_report(make_report(), tmp_path / "report.html")
    brightness = {}
    for scheme in ("light", "dark"):
        page.show(1280, scheme)
        page.open(path.as_uri())
        page.picture(tmp_path / f"{scheme}.png")
        shot = np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("L"), dtype=float)
        assert shot.shape[0] > 1500
        assert shot.std() > 10
        brightness[scheme] = np.median(shot)
    assert brightness["light"] > 200
    assert brightness["dark"] < 60
