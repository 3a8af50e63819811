"""Grids of runs: cells that are whole or absent, continued sweeps, shards, and tables from hand-made records."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from operator import methodcaller
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed
from torch import Tensor
from transformers import CLIPModel

import chromium
from anprompt_cli import main
from anprompt_cli.benchmark import choose_methods, parse_seeds
from anprompt_cli.records import read_record
from anprompt_peft.data import sample_shots
from anprompt_peft.evaluation import protocols
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.grid import (
    Cell,
    Difference,
    Failed,
    Place,
    Setup,
    Summary,
    choose_shard,
    collect,
    is_done,
    make_cells,
    make_tables,
    paired,
    rank_all,
    read_predictions,
    read_results,
    run_cell,
    run_grid,
    sentence,
    store,
    summarise,
)
from anprompt_peft.evaluation.grid.measure import choose_families, phrased_rows
from anprompt_peft.evaluation.grid.published import published, published_for
from anprompt_peft.evaluation.grid.ranking import rank
from anprompt_peft.evaluation.grid.store import read_cell
from anprompt_peft.evaluation.peers import METHODS, make_method
from anprompt_peft.evaluation.peers.registry import CLASSES
from anprompt_peft.evaluation.peers.zero_shot import ZeroShot
from anprompt_peft.evaluation.robustness import FORMS, UNDECIDED_FORMS
from anprompt_peft.evaluation.robustness.curves import areas
from anprompt_peft.evaluation.task import ClassTexts, ImageSet, Part
from anprompt_peft.report import charts
from anprompt_peft.report.benchmark import render_benchmark, write_benchmark, write_poster
from helpers import marks

GOLDEN = Path(__file__).with_name("golden")
FITTED: list[tuple[str, int]] = []
ZERO_SHOT = make_method("zero-shot")
KEYS = {
    "anchored-classifier": "8253934a0670dc848b6e",
    "anprompt": "00131eef68dc753e10d8",
    "cocoop": "f2c2410e30b514c0883a",
    "coop": "dddb2629d97ee05ede98",
    "ivlp": "fba240c8f46ab4657270",
    "linear-probe": "45e1ae337e5bb0ae0265",
    "maple": "c107816ee00f636fddeb",
    "mmrl": "6c11eb46894d33bc2d7f",
    "prolip": "b719d752dc857d06c141",
    "promptsrc": "d051eaaa6f0f31a43196",
    "vpt": "51ef394a5d18abb64d83",
    "zero-shot": "5eb03db5bd16993c2891",
}
ADDED_KEYS = {"tip-adapter": "41f5e605712d486d0ad4", "lora": "8025704cbff7a2fc6b3f"}
"""Of cells on the data set `photos` with the model `a/clip`, seed 1, as they have always been; those of the second
without the settings and the revision that were added later."""


@dataclass(frozen=True)
class Noisy:
    """Zero-shot logits with noise from the seed; `breaks` names a seed at which it stops, and how."""

    scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> NoisyFitted:
        FITTED.append((str(self.options), seed))
        if BREAKS.get("seed") == seed:
            raise BREAKS["error"]
        for _ in range(2):
            learnt = torch.zeros(7, requires_grad=True)
            optimizer = torch.optim.SGD([learnt], lr=1.0)
            learnt.sum().backward()
            optimizer.step()
            optimizer.step()
        return NoisyFitted(backbone, self.scale, seed)


@dataclass(frozen=True)
class NoisyFitted:
    backbone: Backbone
    scale: float
    seed: int

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        drawn = torch.randn(len(images), len(classes.names), generator=torch.Generator().manual_seed(self.seed))
        return self.backbone.zero_shot_logits(images, classes) + self.scale * drawn


BREAKS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _clean() -> None:
    FITTED.clear()
    BREAKS.clear()


Cells = Callable[..., list[Cell]]


@pytest.fixture
def cells(clip_folder: Path, digits: Path) -> Cells:
    """Makes the cells of two methods and some seeds on the digits, with a random CLIP."""

    def make(seeds: Sequence[int] = (1, 2, 3), **setup: Any) -> list[Cell]:
        common = Setup(str(clip_folder), shots=2, **setup)
        return make_cells(common, [str(digits)], {"zero-shot": ZERO_SHOT, "noisy": Noisy()}, seeds)

    return make


def contents(output: Path) -> dict[str, Any]:
    """What a grid measured: everything but times."""
    found = {}
    for record in read_results(output):
        arrays = {
            (name, each): getattr(part, each).tolist()
            for name, part in read_predictions(output, record["key"]).items()
            for each in ("labels", "predicted", "confidence")
        }
        del record["fit_seconds"], record["provenance"]
        shots = (output / record["key"] / "shots.json").read_text()
        found[record["key"]] = (record, arrays, shots)
    return found


def test_a_grid_may_use_settings_again_but_not_without_bounds(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a")
    first = {"x": 1, "y": [2]}
    assert read_record(path, aliases=True) == {"a": first, "b": {"x": 3, "y": [2]}, "c": first}
    pairs = list(itertools.pairwise(string.ascii_lowercase))
    for text, wanted in (
        ("".join(f"{new}: &{new} [*{old}, *{old}, *{old}]\n" for old, new in pairs), "more than 100,000 values"),
        ("".join(f"{new}: &{new} {{<<: [*{old}, *{old}]}}\n" for old, new in pairs), "more than 100,000 values"),
        ("".join(f"{new}: &{new} [*{old}]\n" for old, new in pairs), "or 16 levels"),
        ("z: &z [*z]", r"'\*z' stands within itself"),
        ("z: &z {y: {<<: *z}}", r"'\*z' stands within itself"),
    ):
        path.write_text("a: &a {x: 1}\n" + text)
        with pytest.raises(ValueError, match=rf"^line \d+: .*{wanted}"):
            read_record(path, aliases=True)
    assert main(["benchmark", "--config", str(path), "--output", str(tmp_path / "out")]) == 2


def test_a_cell_of_a_model_whose_processor_does_not_fit_names_the_file(
    cells: Cells, clip_folder: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(clip_folder, tmp_path / "clip")
    edit("processor_config.json", lambda record: record["image_processor"].update(do_rescale=False))(model)
    first = cells([1])[0]
    (failed,) = run_grid([replace(first, setup=replace(first.setup, model=str(model)))], Place(tmp_path / "out"))
    assert (
        f"{model / 'processor_config.json'}: image_processor: do_rescale=False: a CLIP needs this step" in failed.error
    )


# --- cells


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {"data": "eurosat", "name": "noisy", "method": Noisy(2.0, {"a": 1, "b": [2]}), "seed": 3}
    setup = {name: changes.pop(name) for name in list(changes) if name not in values}
    return Cell(Setup("a/clip", **setup), **{**values, **changes})


def test_the_key_is_a_digest_of_the_whole_configuration() -> None:
    configuration = {
        "seed": 3,
        "data": "eurosat",
        "method": {
            "settings": {"options": {"b": [2], "a": 1}, "scale": 2.0},
            "class": "test_grid:Noisy",
            "name": "noisy",
        },
        "model": "a/clip",
        "protocol": "base-to-new",
        "shots": 16,
        "halves": "order",
        "sampling": "coop",
        "source": "folder",
        "targets": [],
        "robustness": [],
    }  # fmt: skip
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    assert cell().key == hashlib.sha256(text.encode()).hexdigest()[:20]
    assert cell().configuration == configuration
    assert cell(method=Noisy(2.0, {"b": [2], "a": 1})).key == cell().key


@pytest.mark.parametrize(
    "change",
    [
        {"data": "dtd"},
        {"name": "other"},
        {"seed": 4},
        {"method": Noisy(3.0, {"a": 1, "b": [2]})},
        {"method": Noisy(2.0, {"a": 1, "b": [3]})},
        {"shots": 8},
        {"protocol": "few-shot"},
        {"halves": "random"},
        {"sampling": "seeded"},
        {"source": "hub"},
        {"targets": ("food",)},
        {"robustness": ("text",)},
    ],
)
def test_everything_that_decides_the_result_changes_the_key(change: dict[str, Any]) -> None:
    assert cell(**change).key != cell().key


def test_settings_must_be_json() -> None:
    with pytest.raises(TypeError, match="settings of method 'noisy' must be JSON values"):
        cell(method=Noisy(options={"a": {1, 2}}))
    with pytest.raises(TypeError, match="settings of method 'noisy' must be JSON values"):
        cell(method=Noisy(scale=math.nan))
    with pytest.raises(TypeError, match="must be an instance of a dataclass"):
        cell(method=Noisy)
    with pytest.raises(ValueError, match="shots=0 must be at least 1"):
        cell(shots=0)


def test_cells_that_share_images_follow_each_other() -> None:
    made = make_cells(Setup("a/clip"), ["x", "y", "x"], {"a": Noisy(), "b": Noisy()}, [2, 1, 2])
    assert [(each.data, each.seed, each.name) for each in made] == [
        ("x", 2, "a"), ("x", 2, "b"), ("x", 1, "a"), ("x", 1, "b"),
        ("y", 2, "a"), ("y", 2, "b"), ("y", 1, "a"), ("y", 1, "b"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="methods is empty"):
        make_cells(Setup("a/clip"), ["x"], {}, [1])


def test_a_method_can_be_made_for_each_data_set() -> None:
    makers: dict[str, Any] = {"coop": partial(make_method, "coop"), "noisy": Noisy()}
    cells = make_cells(Setup("a/clip"), ["imagenet", "dtd"], makers, [1, 2])
    epochs: dict[str, Any] = {str(each): each.method for each in cells if each.name == "coop"}
    assert {name: method.recipe.epochs for name, method in epochs.items()} == {
        "imagenet, coop, seed 1": 50, "imagenet, coop, seed 2": 50, "dtd, coop, seed 1": 200, "dtd, coop, seed 2": 200,
    }  # fmt: skip
    same = make_cells(Setup("a/clip"), ["imagenet", "dtd"], {"coop": make_method("coop"), "noisy": Noisy()}, [1, 2])
    assert [each.key == other.key for each, other in zip(cells, same, strict=True)] == [
        False, True, False, True, True, True, True, True,
    ]  # fmt: skip


def key_of_preset(preset: str, data: str = "photos", **settings: Any) -> str:
    (made,) = make_cells(Setup("a/clip"), [data], {preset: partial(make_method, preset, **settings)}, [1])
    return made.key


def test_the_key_names_added_settings_and_revisions_only_where_something_changes() -> None:
    """The keys are those of folders that earlier versions wrote."""
    key = key_of_preset
    assert {preset: key(preset) for preset in KEYS} == KEYS
    pinned = {METHODS[preset].method for preset in (*KEYS, *ADDED_KEYS)}
    assert pinned == {preset.method for preset in METHODS.values()}
    assert {"tip-adapter": key("tip-adapter", views=0), "lora": key("lora", templates=[])} == ADDED_KEYS
    changed = (
        key("prolip", ensemble=True), key("prolip", "imagenet"), key("tip-adapter"), key("lora"),
        key("anprompt", recipe={"epochs": 5}), key("mmrl", "eurosat"),
    )  # fmt: skip
    assert not {*changed} & {*KEYS.values(), *ADDED_KEYS.values()}


def test_a_class_that_moves_keeps_its_keys_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: Any = ModuleType("elsewhere")
    elsewhere.ZeroShot = ZeroShot
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    monkeypatch.setattr(ZeroShot, "__module__", "elsewhere")
    assert key_of_preset("zero-shot") != KEYS["zero-shot"]
    monkeypatch.setitem(CLASSES, METHODS["zero-shot"].method, "elsewhere:ZeroShot")
    assert key_of_preset("zero-shot") == KEYS["zero-shot"]
    monkeypatch.setitem(CLASSES, "no.longer.there:ZeroShot", "elsewhere:ZeroShot")
    assert make_method("no.longer.there:ZeroShot") == ZERO_SHOT


@pytest.mark.parametrize("total", [1, 3, 5, 30])
def test_shards_are_disjoint_and_complete(total: int) -> None:
    made = make_cells(Setup("a/clip"), ["x", "y"], {"a": Noisy(), "b": Noisy(), "c": Noisy()}, range(4))
    shards = [[each.key for each in choose_shard(made, f"{at}/{total}")] for at in range(1, total + 1)]
    assert sorted(key for shard in shards for key in shard) == sorted(each.key for each in made)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    backwards = [each.key for each in choose_shard(made[::-1], f"1/{total}")]
    assert backwards[::-1] == shards[0]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_wrong_shards(shard: str) -> None:
    with pytest.raises(ValueError, match="must be i/n with i from 1 to n"):
        choose_shard([cell()], shard)


# --- running


def test_a_cell_holds_figures_predictions_and_shots(cells: Cells, tmp_path: Path) -> None:
    made = cells([5])
    assert run_grid(made, Place(tmp_path)) == []
    (record,) = (each for each in read_results(tmp_path) if each["configuration"]["method"]["name"] == "noisy")
    assert record["learnable_parameters"] == 2 * 7
    assert record["fit_seconds"] >= 0
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    parts = read_predictions(tmp_path, record["key"])
    assert list(parts) == ["base", "new"]
    rows = {(row["part"], row["metric"]): row["value"] for row in record["rows"]}
    accuracy = {name: part.accuracy for name, part in parts.items()}
    assert accuracy == {name: rows[name, "accuracy"] for name in parts}
    for name, part in parts.items():
        assert rows[name, "ECE"] == pytest.approx(part.ece, rel=1e-6)
        assert rows[name, "adaptive ECE"] == pytest.approx(part.adaptive_ece, rel=1e-6)
        assert part.confidence is not None
        assert part.confidence.dtype == np.float32
    total = accuracy["base"] + accuracy["new"]
    assert rows["base and new", "H"] == pytest.approx(2 * accuracy["base"] * accuracy["new"] / total)
    assert rows["base", "images"] == len(parts["base"].labels) == 15
    assert rows["new", "ECE"] != rows["new", "adaptive ECE"]
    shots = json.loads((tmp_path / record["key"] / "shots.json").read_text())["train"]
    assert [label for _, _, label in shots] == [label for _, _, label in sorted(shots, key=lambda shot: shot[2])]
    assert len(shots) == 2 * 10


def test_present_cells_are_skipped(cells: Cells, tmp_path: Path) -> None:
    run_grid(cells([1]), Place(tmp_path))
    before = contents(tmp_path)
    run_grid(cells([1, 2]), Place(tmp_path))
    assert [seed for _, seed in FITTED] == [1, 2]
    assert {key: each for key, each in contents(tmp_path).items() if key in before} == before
    assert len(contents(tmp_path)) == 4
    assert run_cell(cells([1])[1], Place(tmp_path)) is None
    assert [seed for _, seed in FITTED] == [1, 2]


def test_a_failing_cell_is_named_and_does_not_stop_the_others(cells: Cells, tmp_path: Path) -> None:
    BREAKS.update(seed=2, error=ArithmeticError("no luck\nat all"))
    (failed,) = run_grid(cells(), Place(tmp_path / "broken"))
    assert (failed.cell.name, failed.cell.seed) == ("noisy", 2)
    assert failed.error == "ArithmeticError: no luck at all"
    assert "in fit" in failed.traceback
    assert len(contents(tmp_path / "broken")) == 5
    BREAKS.clear()
    assert run_grid(cells(), Place(tmp_path / "broken")) == []
    assert run_grid(cells(), Place(tmp_path / "whole")) == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_interrupt_leaves_whole_cells_only(cells: Cells, tmp_path: Path) -> None:
    BREAKS.update(seed=2, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells(), Place(tmp_path))
    assert len(read_results(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(contents(tmp_path))


def wait_for(folder: Path, number: int, alive: Callable[[], bool]) -> list[Path]:
    """The files `writing*` of a folder, as soon as there are so many; the process lives until then."""
    deadline = time.monotonic() + 120
    while len(writing := list(folder.glob("writing*"))) < number:
        assert alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return writing


def test_a_killed_sweep_continues(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed while it writes its third cell."""
    made, killed, save = cells(), tmp_path / "killed", np.savez_compressed

    def hang(path: Path, **arrays: Any) -> None:
        if len(list(killed.glob("*/result.json"))) == 2:
            (tmp_path / "writing").touch()
            time.sleep(600)
        save(path, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", hang)
        process = multiprocessing.get_context("fork").Process(target=run_grid, args=(made, Place(killed)))
        process.start()
    wait_for(tmp_path, 1, process.is_alive)
    process.kill()
    process.join()
    assert [path for path in killed.iterdir() if path.name.startswith(".")], "a half-written cell"
    assert len(read_results(killed)) == sum(is_done(killed, each) for each in made) == 2
    run_grid(made, Place(killed))
    assert len(FITTED) == 2
    run_grid(made, Place(tmp_path / "whole"))
    assert contents(killed) == contents(tmp_path / "whole")


HANGING = """
import os, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from anprompt_peft.evaluation.peers import make_method

def hang(path, **_):
    path.touch()
    Path(f"writing-{os.getpid()}").touch()
    time.sleep(600)

np.savez_compressed = hang

@dataclass(frozen=True)
class Hanging:
    def fit(self, *given):
        return make_method("zero-shot").fit(*given)
"""


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_to_a_grid_ends_all_processes_and_leaves_nothing_half_written(
    jobs: int, clip_folder: Path, digits: Path, tmp_path: Path
) -> None:
    """It is sent to the first process alone, while all are writing a cell."""
    (tmp_path / "hanging.py").write_text(HANGING)
    options = ["--data", digits, "--model", clip_folder, "--shots", 1, "--seeds", "1-3", "--jobs", jobs]
    command = [sys.executable, "-m", "anprompt_peft", "benchmark", "--method", "hanging:Hanging", "--output", "grid"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])
    with subprocess.Popen(
        [*command, *map(str, options)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        writing = wait_for(tmp_path, jobs, lambda: process.poll() is None)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err.decode()
    assert b"interrupted: 0 of 3 cells are done" in err
    for path in writing:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("writing-")), 0)
    assert list((tmp_path / "grid").iterdir()) == []


SECOND = """
import sys, time
sys.path.append("anprompt_peft")  # the module alone, without PyTorch
from termination import sigterm_interrupts
with sigterm_interrupts():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        {last}
        raise
"""


@pytest.mark.parametrize(("last", "code"), [("pass", 143), ("time.sleep(600)", -signal.SIGTERM)])
def test_a_script_ends_by_the_first_or_the_second_sigterm(last: str, code: int) -> None:
    script = [sys.executable, "-c", SECOND.format(last=last)]
    with subprocess.Popen(script, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in [b"ready\n", b"cleaning up\n"][: 1 + (code < 0)]:
            assert process.stdout.readline() == line
            process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == code


@pytest.mark.slow
def test_neither_processes_nor_order_change_results_and_they_may_share_a_folder(cells: Cells, tmp_path: Path) -> None:
    made = cells([1, 2])
    run_grid(made, Place(tmp_path / "one"))
    run_grid(made[::-1], Place(tmp_path / "two"), jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    twice = [each for pair in zip(made, made, strict=True) for each in pair]
    failed = Parallel(2, batch_size=1)(delayed(run_cell)(each, Place(tmp_path / "shared")) for each in twice)
    assert failed == [None] * len(twice)
    assert contents(tmp_path / "shared") == contents(tmp_path / "one")
    assert len(list((tmp_path / "shared").iterdir())) == len(made)


def test_images_are_encoded_and_shots_drawn_once(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the parts for all methods and seeds, shots for all methods."""
    encode, sizes, seeds = CLIPModel.get_image_features, [], []

    def encoded(self: CLIPModel, pixels: Tensor) -> Any:
        sizes.append(len(pixels))
        return encode(self, pixels)

    def drawn(labels: Sequence[int], shots: int, seed: int) -> list[int]:
        seeds.append(seed)
        return sample_shots(labels, shots, seed)

    monkeypatch.setattr(CLIPModel, "get_image_features", encoded)
    monkeypatch.setattr(protocols, "sample_shots", drawn)
    run_grid(cells(sampling="seeded"), Place(tmp_path))
    assert (sizes, seeds) == ([15, 15], [1, 2, 3])


def test_threads_are_set_for_a_cell_alone(cells: Cells, tmp_path: Path) -> None:
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ZeroShot, "fit", lambda *_: seen.append(torch.get_num_threads()))
            run_grid(cells([1])[:1], Place(tmp_path, threads=1))  # which fails, as nothing was fitted
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_perturbations_are_measured_too(cells: Cells, tmp_path: Path) -> None:
    run_grid(cells([1], robustness=("case",)), Place(tmp_path))
    lines = [json.loads(line) for line in collect(tmp_path).read_text().splitlines()]
    perturbed = [line for line in lines if line.get("family") == "case"]
    assert {line["strength"] for line in perturbed} == {0, 1, 2}
    clean, unperturbed = (
        {(line["key"], line["part"]): line["value"] for line in found if line["metric"] == "accuracy"}
        for found in (
            [line for line in lines if "family" not in line],
            [line for line in perturbed if line["strength"] == 0],
        )
    )
    assert clean == unperturbed
    (summary,) = summarise(read_results(tmp_path))
    titles = [table.title for table in make_tables(summary, "zero-shot")]
    assert titles[-3:] == ["images: robustness, base", "images: robustness, new", "Differences from zero-shot"]


def test_phrasing_is_a_figure_of_the_cell(cells: Cells, tmp_path: Path) -> None:
    """Each form weighs the same, by its draws' mean; what leaves the class undecided stands apart."""
    asked = ("case", "phrasing", "undecided")
    run_grid(cells([1], robustness=asked)[:1], Place(tmp_path))
    (found,) = read_results(tmp_path)
    values = {(row["part"], row["metric"]): row["value"] for row in found["rows"]}
    means = {}
    for part in ("base", "new"):
        for metric, forms in (("accuracy under phrasing", FORMS), ("accuracy, class undecided", UNDECIDED_FORMS)):
            drawn = [
                [
                    row["value"]
                    for row in found["robustness"]
                    if (row["part"], row["family"], row["strength"], row["metric"]) == (part, form.name, 1, "accuracy")
                ]
                for form in forms
            ]
            assert {len(draws) for draws in drawn} == {3}
            assert values[part, metric] == pytest.approx(np.mean(drawn))
        means[part] = values[part, "accuracy under phrasing"]
    expected = 2 * means["base"] * means["new"] / (means["base"] + means["new"])
    assert values["base and new", "H under phrasing"] == pytest.approx(expected)
    lines = [json.loads(line) for line in collect(tmp_path).read_text().splitlines()]
    assert [line["metric"] for line in lines if line["metric"] == "H under phrasing"] == ["H under phrasing"]
    run_grid(cells([1], robustness=("other sentence",))[:1], Place(tmp_path / "one form"))
    (alone,) = read_results(tmp_path / "one form")
    assert {row["metric"] for row in alone["rows"]} == {"accuracy", "images", "ECE", "adaptive ECE", "H"}


def test_a_form_counts_by_its_greatest_strength() -> None:
    synonyms = {"a": ["b"], "c": ["d"], "x": []}

    def rows(part: str, **accuracies: float) -> list[dict[str, Any]]:
        levels = [(form.name, strength) for form in FORMS for strength in (0, 1)]
        values = dict.fromkeys(levels, 0.0) | {("synonyms", each): accuracies[f"at_{each}"] for each in (0, 1, 2)}
        return [
            {"part": part, "family": family, "strength": strength, "draw": 0, "metric": "accuracy", "value": value}
            for (family, strength), value in values.items()
        ]

    def under_phrasing(*names: str) -> dict[str, float]:
        images: Any = None
        both = zip(("base", "new"), names, strict=True)
        parts = [Part(part, images, ClassTexts((name,)), synonyms) for part, name in both]
        perturbed = [*rows("base", at_0=90, at_1=50, at_2=40), *rows("new", at_0=90, at_1=50, at_2=80)]
        return {row["part"]: row["value"] for row in phrased_rows(["phrasing"], parts, perturbed)}

    assert under_phrasing("a", "c") == {"base": 5.0, "new": 10.0, "base and new": pytest.approx(20 / 3)}
    assert under_phrasing("a", "x") == {"base": 0.0, "new": 0.0, "base and new": 0.0}, "not in all parts"


def test_families_by_name() -> None:
    assert [family.name for family in choose_families(["phrasing"])] == [form.name for form in FORMS]
    assert choose_families(["synonyms", "phrasing", "text"], {"a": ["b"]})[0].name == "synonyms"
    every = [family.name for family in choose_families(["text", "phrasing", "undecided"], {"a": ["b"]})]
    assert len(set(every)) == len(every) == 10 + len(FORMS) + len(UNDECIDED_FORMS)
    assert "synonyms" not in [family.name for family in choose_families(["phrasing"], {"a": ["b"]}, False)]
    assert [family.name for family in choose_families(["JPEG", "case", "JPEG"])] == ["JPEG", "case"]
    assert choose_families(["synonyms"], {"a": ["b"]})[0].name == "synonyms"
    assert choose_families(["text"], {"a": ["b"]})[-1].name == "synonyms"
    assert len(choose_families(["text", "image"])) == len(choose_families(["text"])) + len(choose_families(["image"]))
    with pytest.raises(ValueError, match=r"robustness=\['typos'\] must be of text, image, "):
        choose_families(["typos"])


# --- on Ray


@dataclass(frozen=True)
class Deadly:
    """Ends its process whenever it is fitted, and leaves a line about it in a file."""

    log: str

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> NoReturn:
        with open(self.log, "a") as log:
            log.write(f"{seed}\n")
        os._exit(1)


@pytest.mark.slow
def test_the_example_on_ray(
    cells: Cells, clip_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on this machine: results as without Ray, present cells skipped, dying workers tried once more."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # its token would be written into the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # for the workers
    ray_grid = import_module("ray_grid")
    run_grid(cells(), Place(tmp_path / "here"))
    run_grid(cells([2])[:1], Place(tmp_path / "ray"))
    (present,) = (tmp_path / "ray").glob("*/result.json")
    before = present.stat().st_mtime_ns
    settings = ["--data", str(digits), "--model", str(clip_folder), "--shots", "2", "--workers", "2"]
    settings += ["--method", "zero-shot", "--output", str(tmp_path / "ray")]
    try:
        assert ray_grid.main(settings) == 0
        deadly = make_cells(cells()[0].setup, [str(digits)], {"deadly": Deadly(str(tmp_path / "log"))}, [1])
        failed = ray_grid.run_on_ray([*deadly, *cells()], Place(tmp_path / "ray"))
    finally:
        ray.shutdown()
    assert [each.cell for each in failed] == deadly, failed
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert present.stat().st_mtime_ns == before
    assert "died" in failed[0].error
    assert (tmp_path / "log").read_text().splitlines() == ["1", "1"]


# --- reading


Damage = Callable[[Path], Any]


def change(name: str, make: Callable[[bytes], bytes]) -> Damage:
    """Makes other bytes of those of a file."""
    return lambda folder: (folder / name).write_bytes(make((folder / name).read_bytes()))


def edit(name: str, update: Callable[[dict[str, Any]], Any]) -> Damage:
    def edited(content: bytes) -> bytes:
        record = json.loads(content)
        update(record)
        return json.dumps(record).encode()

    return change(name, edited)


def overwrite(name: str, content: bytes) -> Damage:
    return change(name, lambda _: content)


def cut(name: str) -> Damage:
    return change(name, lambda content: content[:-40])


def put_folder(name: str) -> Damage:
    return lambda folder: (folder / name).rename(folder / "moved").with_name(name).mkdir()


def rewrite(name: str, update: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def rewritten(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as arrays:
            held = {**arrays, f"base/{name}": update(arrays[f"base/{name}"])}
        np.savez_compressed(file := io.BytesIO(), **held)
        return file.getvalue()

    return change("predictions.npz", rewritten)


RECORD_DAMAGE = {
    "missing": lambda folder: (folder / "result.json").unlink(),
    "empty": overwrite("result.json", b""),
    "cut": cut("result.json"),
    "a folder": put_folder("result.json"),
    "a list": overwrite("result.json", b"[]"),
    "null": overwrite("result.json", b"null"),
    "bytes": overwrite("result.json", b"\xff\xfe\x00"),
    "zeros": overwrite("result.json", b"\0" * 4096),
    "deep": overwrite("result.json", b"[" * 100_000),
    **{
        f"no {name}": edit("result.json", methodcaller("pop", name))
        for name in (
            "key", "configuration", "data", "parts", "fit_seconds", "learnable_parameters", "rows", "robustness",
            "provenance",
        )
    },
    "other key": edit("result.json", lambda record: record.update(key="0" * 20)),
    "other seed": edit("result.json", lambda record: record["configuration"].update(seed=7)),
    "NaN setting": edit("result.json", lambda record: record["configuration"].update(seed=math.nan)),
    "NaN": edit("result.json", lambda record: record["rows"][0].update(value=math.nan)),
    "text": edit("result.json", lambda record: record["rows"][0].update(value="97")),
    "no row": edit("result.json", lambda record: record["rows"].clear()),
    "no part": edit("result.json", lambda record: record.update(parts=[], rows=[])),
    "a row without metric": edit("result.json", lambda record: record["rows"][0].pop("metric")),
    "data without name": edit("result.json", lambda record: record["data"].pop("name")),
}  # fmt: skip
EDITED = ("other key", "other seed")
OTHER_DAMAGE = {
    "no predictions": lambda folder: (folder / "predictions.npz").unlink(),
    "empty predictions": overwrite("predictions.npz", b""),
    "cut predictions": cut("predictions.npz"),
    "flipped predictions": change("predictions.npz", lambda old: old[:100] + bytes([old[100] ^ 1]) + old[101:]),
    "predictions in a folder": put_folder("predictions.npz"),
    "predictions pickled": lambda folder: np.savez(folder / "predictions.npz", labels=np.array([None])),
    "fewer predictions": rewrite("labels", lambda array: array[:-1]),
    "predictions of text": rewrite("confidence", lambda array: array.astype(str)),
    "predictions of NaN": rewrite("confidence", lambda array: array * math.nan),
    "labels of no class": rewrite("labels", lambda array: array + 9),
    "no shots": lambda folder: (folder / "shots.json").unlink(),
    "cut shots": cut("shots.json"),
    "other shots": overwrite("shots.json", b"[]"),
    "a file": lambda folder: folder.rename(folder.with_name("moved")).with_name(folder.name).write_text("x"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def measured(clip_folder: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path]:
    """A cell and the folder of a grid that holds it."""
    output = tmp_path_factory.mktemp("measured")
    (made,) = make_cells(Setup(str(clip_folder), shots=2), [str(digits)], {"noisy": Noisy()}, [1])
    assert run_grid([made], Place(output)) == []
    return made, output


@pytest.mark.parametrize("damage", [*RECORD_DAMAGE, *OTHER_DAMAGE])
def test_a_cell_that_cannot_be_read_is_named_and_not_done(
    damage: str, measured: tuple[Cell, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, output = measured
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / made.key
    assert is_done(tmp_path, made)
    (RECORD_DAMAGE | OTHER_DAMAGE)[damage](folder)
    assert not is_done(tmp_path, made)
    edited = "result.json: it does not hold the cell that its folder is named after" if damage in EDITED else ""
    with pytest.raises(ValueError, match=f"The cell {folder} is damaged: {edited}"):
        read_cell(folder)
    if damage in RECORD_DAMAGE:
        assert main(["benchmark", "report", str(tmp_path)]) == 2
        assert f"error: The cell {folder} is damaged: result.json: " in capsys.readouterr().err


def test_damaged_cells_are_set_aside_and_measured_again(
    measured: tuple[Cell, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice; files and folders that are no cells stay, and are not read."""
    made, output = measured
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    expected = contents(tmp_path)
    for name in ("notes", f"{made.key} (copy)", ".trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{")
    (tmp_path / made.key / "._result.json").write_bytes(b"\0\5")
    assert run_grid([made], Place(tmp_path)) == []
    assert FITTED == []
    for name in (f"damaged-{made.key}", f"damaged-{made.key}-2"):
        (tmp_path / made.key / "result.json").write_text(f"half of {name}")
        assert run_grid([made], Place(tmp_path)) == []
        assert (tmp_path / name / "result.json").read_text() == f"half of {name}"
        assert f"It is now called {name}, and the cell is measured again." in caplog.text
        assert contents(tmp_path) == expected
    assert len(FITTED) == 2
    assert len(list(tmp_path.iterdir())) == 6


def test_a_cell_that_may_not_be_read_ends_the_command(
    measured: tuple[Cell, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, output = measured

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    before = sorted(output.rglob("*"))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"result\.json"):
        run_grid([made], Place(output))
    assert sorted(output.rglob("*")) == before


def test_the_first_of_two_that_finish_a_cell_stays(
    measured: tuple[Cell, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, output = measured

    def other(array: Any) -> None:
        shutil.copytree(output, tmp_path, dirs_exist_ok=True)
        (tmp_path / made.key / "first").touch()

    monkeypatch.setattr(np, "savez_compressed", lambda path, **arrays: other(path))
    assert run_cell(made, Place(tmp_path)) is None
    assert (tmp_path / made.key / "first").exists()
    assert is_done(tmp_path, made)
    assert [path.name for path in tmp_path.iterdir()] == [made.key]


def test_collected_lines_are_tidy_and_counted_once(cells: Cells, tmp_path: Path) -> None:
    run_grid(cells([1, 2]), Place(tmp_path))
    half = tmp_path / f".{'0' * 20}-abc" / "new"
    half.mkdir(parents=True)
    (half / "result.json").write_text("{")
    lines = [json.loads(line) for line in collect(tmp_path).read_text().splitlines()]
    assert collect(tmp_path).read_text().count("\n") == len(lines) == 4 * (2 * 4 + 1)
    identities = {(line["key"], line["part"], line["metric"]) for line in lines}
    assert len(identities) == len(lines)
    assert {"value", "seed", "data", "model", "shots", "provenance", "comparable"} <= set(lines[0])


# --- tables, on records made by hand


def record(
    data: str, method: str, seed: int, base: float, new: float, *, comparable: bool = True, **configuration: Any
) -> dict[str, Any]:
    figures = {("base", "accuracy"): base, ("new", "accuracy"): new, ("base", "ECE"): 1.0, ("new", "ECE"): 2.0}
    figures["base and new", "H"] = 2 * base * new / (base + new)
    return {
        "key": f"{data}-{method}-{seed}",
        "configuration": {
            "data": data,
            "seed": seed,
            "method": {"name": method, "class": "a:B", "settings": {}},
            "model": "openai/clip-vit-base-patch16",
            "protocol": "base-to-new",
            "shots": 16,
            "halves": "order",
            "sampling": "coop",
            **configuration,
        },
        "data": {"name": data, "comparable": comparable, "note": ""},
        "parts": [{"name": "base", "images": 10, "classes": ["a"]}, {"name": "new", "images": 9, "classes": ["b"]}],
        "rows": [{"part": part, "metric": metric, "value": value} for (part, metric), value in figures.items()],
        "robustness": [],
        "provenance": {"versions": {"python": "3"}, "git_commit": None},
    }


DTD, EUROSAT = [(80, 60), (82, 64), (87, 62)], [(95, 97), (94, 98), (96, 93)]


def records(**configuration: Any) -> list[dict[str, Any]]:
    """Two data sets, two methods, three seeds: (base, new)."""
    figures = {
        ("dtd", "zero-shot"): [(60, 70), (60, 70), (60, 70)],
        ("dtd", "anprompt"): DTD,
        ("eurosat", "zero-shot"): [(90, 96), (90, 96), (90, 96)],
        ("eurosat", "anprompt"): EUROSAT,
    }
    return [
        record(data, method, seed, base, new, **configuration)
        for (data, method), pairs in figures.items()
        for seed, (base, new) in enumerate(pairs, 1)
    ]


def drawn_records() -> list[dict[str, Any]]:
    """Three setups in the order of nothing: two with runs that are missing, and all kinds of figures."""
    rng, made = random.Random(0), records(shots=8)

    def figure() -> float:
        return rng.randrange(200, 990) / 10

    def perturbed(part: str) -> list[dict[str, Any]]:
        levels = [("case", 0, 1), ("case", 1, 3), ("case", 2, 3), ("blur", 0, 1), ("blur", 0.25, 3), ("blur", 0.5, 3)]
        return [
            {"part": part, "family": family, "strength": strength, "draw": draw, "metric": metric, "value": figure()}
            for family, strength, draws in levels
            for draw in range(draws)
            for metric in ("accuracy", "flip rate")
        ]

    for data, method, seed in itertools.product(
        ("dtd", "pets", "photos"), ("zero-shot", "anprompt", "coop"), range(9)
    ):
        one = record(data, method, seed, figure(), figure(), comparable=data != "photos")
        one["rows"] += [{"part": part, "metric": "adaptive ECE", "value": figure() / 9} for part in ("base", "new")]
        one["data"]["note"] = {"pets": "", "photos": "Made by hand."}.get(data, "Other images.")
        one["robustness"] = [*perturbed("base"), *perturbed("new")]
        across = copy.deepcopy(one)
        across["configuration"].update(protocol="cross-data", targets=["sun", "data"])
        across["parts"] = [{"name": name, "images": 10, "classes": ["a"]} for name in ("test", "sun", "data")]
        across["rows"] = [
            {"part": part["name"], "metric": metric, "value": figure()}
            for part in across["parts"]
            for metric in ("accuracy", "images", "ECE", "adaptive ECE")
        ]
        across["robustness"] = []
        if (data, method) != ("photos", "coop") and (data, method, seed) not in {
            ("dtd", "anprompt", 3),
            ("pets", "zero-shot", 0),
        }:
            made += [one, across] if seed < 3 else [one]
    rng.shuffle(made)
    return made


def test_no_digit_of_the_tables_changes() -> None:
    tables = [table.markdown() for made in summarise(drawn_records()) for table in make_tables(made, "zero-shot")]
    assert "\n\n".join(tables) + "\n" == (GOLDEN / "tables.md").read_text(encoding="utf-8")


@pytest.fixture
def summary() -> Summary:
    (made,) = summarise(records())
    return made


def test_paired_intervals() -> None:
    """Against Student's interval written out: the quantile for 2 degrees of freedom is sqrt(2 a^2 / (1 - a^2))."""
    difference = paired({1: 5.0, 2: 7.0, 4: 12.0, 9: 1.0}, {4: 8.0, 2: 5.0, 1: 4.0, 7: 100.0})
    assert difference is not None
    assert (difference.value, difference.seeds) == (pytest.approx(7 / 3), 3)
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    quantile = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    half = quantile * deviation / math.sqrt(3)
    assert difference.low == pytest.approx(7 / 3 - half, abs=1e-10)
    assert difference.high == pytest.approx(7 / 3 + half, abs=1e-10)
    assert not difference.excludes_zero
    clear = paired({1: 1.0, 2: 1.1, 3: 0.9}, dict.fromkeys((1, 2, 3), 0.0))
    assert clear is not None
    assert clear.excludes_zero


def test_no_interval_without_variation() -> None:
    alone = paired({1: 3.0}, {1: 1.0})
    assert alone is not None
    assert (alone.value, alone.low, alone.high, alone.seeds) == (2.0, None, None, 1)
    same = paired({1: 0.3, 2: 0.6}, {1: 0.1, 2: 0.4})
    assert same is not None
    assert (same.low, same.seeds) == (None, 2)
    assert paired({1: 3.0}, {2: 1.0}) is None


def test_accuracies_and_both_average_h(summary: Summary) -> None:
    tables = {table.title: table for table in make_tables(summary, "anprompt")}
    rows = {row[0]: row for row in tables["dtd"].rows}
    assert tables["dtd"].head == ("method", "base", "new", "H", "mean H")
    assert list(rows) == ["zero-shot", "anprompt"]
    each = [2 * base * new / (base + new) for base, new in ((80, 60), (82, 64), (87, 62))]
    assert rows["anprompt"] == (
        "anprompt",
        f"83.00 ± {math.sqrt((9 + 1 + 16) / 3):.2f}",
        f"62.00 ± {math.sqrt(8 / 3):.2f}",
        f"{2 * 83 * 62 / 145:.2f}",
        f"{sum(each) / 3:.2f} ± {np.std(each):.2f}",
    )
    average = {row[0]: row for row in tables["average"].rows}
    base, new = (83 + 95) / 2, (62 + 96) / 2
    pets = [2 * base * new / (base + new) for base, new in ((95, 97), (94, 98), (96, 93))]
    assert average["anprompt"][1:5] == (
        f"{base:.2f}",
        f"{new:.2f}",
        f"{2 * base * new / (base + new):.2f}",
        f"{(sum(each) / 3 + sum(pets) / 3) / 2:.2f}",
    )
    assert average["anprompt"][3] != average["anprompt"][4]


def test_published_figures_stand_beside_the_averages(summary: Summary) -> None:
    tables = {table.title: table for table in make_tables(summary, "anprompt")}
    assert tables["average"].head[-1] == "published base / new / H"
    assert [row[-1] for row in tables["average"].rows] == ["69.34 / 74.22 / 71.70", "-"]
    assert "averages over 11 data sets, here 2; not measured here" in tables["average"].notes[-1]
    assert "arXiv 2203.05557" in tables["average"].notes[-1]
    for other in (
        {"shots": 8},
        {"protocol": "few-shot"},
        {"model": "openai/clip-vit-base-patch32"},
        {"halves": "random"},
        {"sampling": "seeded"},
        {"comparable": False},
    ):
        (different,) = summarise(records(**other))
        assert published_for(different) == {}, other
    (own,) = summarise([*records(), record("my-cars", "zero-shot", 1, 60, 70)])
    assert published_for(own) == {}


def test_published_figures_have_sources() -> None:
    assert set(published()[0]) <= {"zero-shot", "coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "mmrl"}
    for name, row in published()[0].items():
        make_method(name)
        assert "arXiv" in row.source
        assert pytest.approx(2 * row.base * row.new / (row.base + row.new), abs=0.011) == row.H
    text = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    for row in published()[0].values():
        assert f"| {row.label} | {row.base:.2f} | {row.new:.2f} | {row.H:.2f} |" in text


def test_differences(summary: Summary) -> None:
    found = summary.differences("anprompt", "zero-shot")
    assert found["dtd", "base"].value == pytest.approx(23)
    assert found["eurosat", "new"].value == pytest.approx(0)
    h = [2 * base * new / (base + new) for base, new in ((80, 60), (82, 64), (87, 62))]
    assert found["dtd", "H"].value == pytest.approx(sum(h) / 3 - 2 * 60 * 70 / 130)
    average = summary.average_differences("anprompt", "zero-shot")
    assert average["base"] == paired(
        {1: (80 + 95) / 2, 2: (82 + 94) / 2, 3: (87 + 96) / 2}, dict.fromkeys((1, 2, 3), 75.0)
    )
    table = make_tables(summary, "zero-shot")[-1]
    assert len(table.rows) == 9
    intervals = [row for row in table.rows if row[4] != "-"]
    excluding = [row for row in intervals if (row[4][0] == "+") == (row[4].split(" to ")[1][0] == "+")]
    assert f"9 comparisons, {len(intervals)} with an interval, of which {len(excluding)} exclude 0" in table.notes[0]
    assert "about 0.5 would by chance" in table.notes[0]
    assert {row[2] for row in table.rows} == {"base", "new", "mean H"}
    assert {row[5] for row in table.rows} == {"3"}


def test_incomplete_grids_say_so() -> None:
    some = [each for each in records() if each["key"] not in ("dtd-anprompt-3", "eurosat-zero-shot-1")]
    some.append(record("dtd", "coop", 1, 70, 60))
    (summary,) = summarise(some)
    tables = {table.title: table for table in make_tables(summary, "anprompt")}
    assert "over 3 seeds, in per cent. Fewer seeds: anprompt 2, coop 1." in tables["dtd"].notes[0]
    assert "Not on every data set, and left out: coop." in tables["average"].notes
    rows = {row[:3]: row for row in tables["Differences from anprompt"].rows}
    assert rows["coop", "dtd", "base"][3:] == ("-10.00", "-", "1")
    assert rows["zero-shot", "average", "base"][5] == "1"
    assert summary.average_differences("zero-shot", "anprompt")["base"].value == pytest.approx(75 - 88)


def test_other_images_are_not_compared() -> None:
    made = records()
    made[4]["parts"][0] = {**made[4]["parts"][0], "images": 11}
    (summary,) = summarise(made)
    with pytest.raises(ValueError, match=r"dtd: anprompt and zero-shot were .* for seeds \[2\]"):
        summary.differences("anprompt", "zero-shot")


def test_one_name_is_one_method() -> None:
    made = records()
    made[4]["configuration"]["method"] = {"name": "anprompt", "class": "a:B", "settings": {"epochs": 5}}
    with pytest.raises(ValueError, match=r"'anprompt' was run with different settings.*Give each a name of its own"):
        summarise(made)
    with pytest.raises(ValueError, match="'anprompt' was run with different settings"):
        summarise([*records(), made[4]])
    for each in made:
        if each["configuration"]["data"] == "dtd" and each["configuration"]["method"]["name"] == "anprompt":
            each["configuration"]["method"] = {"name": "anprompt", "class": "a:B", "settings": {"epochs": 5}}
    (summary,) = summarise(made)
    assert summary.adjusted == ["anprompt"]
    tables = {table.title: table for table in make_tables(summary, "anprompt")}
    assert "With other settings on some data sets: anprompt." in tables["average"].notes


def test_setups_are_tabulated_apart() -> None:
    first, second = summarise([*records(), *records(shots=4)])
    assert (first.setup["shots"], second.setup["shots"]) in ((4, 16), (16, 4))
    assert len(first.runs) == len(second.runs) == 12


def test_data_sets_with_one_name_are_kept_apart() -> None:
    made = records()
    for each in made:
        each["configuration"]["data"] = f"path/{each['data']['name']}"
        each["data"]["name"] = "photos"
    assert summarise(made)[0].data == ["path/dtd", "path/eurosat"]


def test_areas() -> None:
    rows = [
        {"part": "base", "family": "blur", "strength": strength, "draw": draw, "metric": metric, "value": value}
        for strength, draw, metric, value in [
            (0, 0, "accuracy", 90.0), (1, 0, "accuracy", 80.0), (1, 1, "accuracy", 60.0), (4, 0, "accuracy", 10.0),
            (4, 0, "flip rate", 99.0),
        ]
    ]  # fmt: skip
    assert areas(pd.DataFrame(rows), ["part", "family"]).to_dict() == {
        ("base", "blur"): pytest.approx(((90 + 70) / 2 + 3 * (70 + 10) / 2) / 4)
    }


def phrased_record(method: str, seed: int, base: float, new: float, **configuration: Any) -> dict[str, Any]:
    """A run under phrasing: in the mean base loses 10 points and new 20; in the forms that are listed, 5 and 7."""
    one = record("dtd", method, seed, base, new, **configuration)
    accuracies = {"base": base - 10, "new": new - 20}
    one["rows"] += [
        {"part": part, "metric": "accuracy under phrasing", "value": value} for part, value in accuracies.items()
    ]
    value = 2 * accuracies["base"] * accuracies["new"] / sum(accuracies.values())
    one["rows"].append({"part": "base and new", "metric": "H under phrasing", "value": value})
    levels = {"case": (0, 1), "clause behind": (0, 1), "synonyms": (0, 0.5, 1), "thing in front": (0, 1)}
    one["robustness"] = [
        {
            "part": part, "family": family, "strength": strength, "draw": draw, "metric": "accuracy",
            "value": {"base": base, "new": new}[part] - strength * (2 * draw + (4 if part == "base" else 6)),
        }
        for part in ("base", "new")
        for family, strengths in levels.items()
        for strength in strengths
        for draw in range(2 if strength else 1)
    ]  # fmt: skip
    return one


def test_h_under_phrasing_stands_beside_clean_h() -> None:
    figures = {"zero-shot": [(60, 70), (62, 70)], "anprompt": [(80, 62), (80, 66)]}
    made = [
        phrased_record(method, seed, base, new)
        for method, pairs in figures.items()
        for seed, (base, new) in enumerate(pairs, 1)
    ]
    (summary,) = summarise(made)
    tables = {table.title: table for table in make_tables(summary, "zero-shot")}
    assert tables["dtd"].head[:6] == ("method", "base", "new", "H", "mean H", "H under phrasing")
    each = [2 * base * new / (base + new) for base, new in ((70, 42), (70, 46))]
    assert tables["dtd"].rows[1][5] == f"{np.mean(each):.2f} ± {np.std(each):.2f}"
    assert any(note.startswith("H under phrasing: mean over the seeds") for note in tables["dtd"].notes)
    before = [2 * base * new / (base + new) for base, new in ((50, 50), (52, 50))]
    difference = summary.differences("anprompt", "zero-shot")["dtd", "H under phrasing"]
    assert difference == paired(dict(enumerate(each)), dict(enumerate(before)))
    assert ("anprompt", "dtd", "H under phrasing") in [row[:3] for row in tables["Differences from zero-shot"].rows]
    assert "dtd: H under phrasing" in render_benchmark([summary], "zero-shot")


def test_losses_of_base_and_new_stand_apart_and_undecided_ones_beside() -> None:
    (summary,) = summarise([phrased_record("zero-shot", seed, 60, 70) for seed in (1, 2)])
    tables = {table.title.removeprefix("dtd: "): table for table in make_tables(summary, "zero-shot")}
    for part, loss, mean_loss in (("base", "5.00", "10.00"), ("new", "7.00", "20.00")):
        lost, undecided = (tables[f"points lost{what}, {part}"] for what in (" under phrasing", ", class undecided"))
        assert lost.head == ("method", "mean", "clause behind", "synonyms")
        assert lost.rows == (("zero-shot", *(f"{each} ± 0.00" for each in (mean_loss, loss, loss))),)
        assert undecided.head == ("method", "thing in front")
        assert undecided.rows == (("zero-shot", f"{loss} ± 0.00"),)
        assert tables[f"robustness, {part}"].head == ("method", "case", "synonyms"), "forms have no area"
    old = [record("dtd", "zero-shot", 1, 60, 70)]
    old[0]["robustness"] = [row for row in phrased_record("a", 1, 60, 70)["robustness"] if row["family"] == "synonyms"]
    (summary,) = summarise(old)
    assert not [table.title for table in make_tables(summary, "zero-shot") if "lost" in table.title]


PAIRS = {
    "zero-shot": {1: (60, 70), 2: (70, 60), 3: (64, 80), 4: (80, 64), 5: (10, 10), 7: (50, 90), 8: (90, 50)},
    "anprompt": {1: (80, 60), 2: (90, 70), 3: (82, 70), 4: (94, 64), 5: (90, 90), 6: (90, 90), 7: (85, 85)},
}
"""By method and seed, (base, new): draws 1 and 2 are whole for both, 3 and 4 for one of them."""


def paired_summary(**changes: Any) -> Summary:
    made = [
        record(data, method, seed, base, new, **{"halves": "paired", **changes})
        for data in ("dtd", "pets")
        for method, runs in PAIRS.items()
        for seed, (base, new) in runs.items()
    ]
    return summarise(made)[0]


def test_of_paired_halves_the_draw_is_the_unit() -> None:
    summary = paired_summary()
    first, second = (80 - 60 + 90 - 70) / 2, (82 - 64 + 94 - 80) / 2
    expected = paired({1: first, 2: second}, {1: 0.0, 2: 0.0})
    assert expected is not None
    assert (expected.seeds, expected.low is None) == (2, False)
    assert summary.differences("anprompt", "zero-shot")["dtd", "base"] == expected
    assert summary.average_differences("anprompt", "zero-shot")["base"] == expected
    assert paired_summary(halves="random").differences("anprompt", "zero-shot")["dtd", "base"].seeds == 6
    zero_shot = [65, 72, 10, 70]
    tables = {table.title: table for table in make_tables(summary, "zero-shot")}
    assert tables["dtd"].rows[0][1] == f"{np.mean(zero_shot):.2f} ± {np.std(zero_shot):.2f}"
    assert summary.means.loc[("dtd", "zero-shot"), "base"] == pytest.approx(np.mean(zero_shot))


def test_tables_say_that_draws_have_both_orders_and_which_have_one() -> None:
    tables = {table.title: table for table in make_tables(paired_summary(), "zero-shot")}
    lone = "Draws with one order only, which do not count in differences: anprompt 4; zero-shot 3."
    note = tables["dtd"].notes[0]
    assert "over 4 draws, both orders, in per cent. The two orders of a draw are averaged first." in note
    assert lone in note
    assert "means over draws" in tables["average"].notes[0]
    differences = tables["Differences from zero-shot"]
    assert differences.head[-1] == "draws"
    assert {row[-1] for row in differences.rows} == {"2"}
    assert lone in differences.notes
    assert "over the draws covers" in differences.notes[0]
    page = render_benchmark([paired_summary()], "zero-shot")
    assert "paired over the draws" in page
    assert lone in page
    (whole,) = summarise([record("dtd", "zero-shot", seed, 60, 70, halves="paired") for seed in (1, 2)])
    assert "one order only" not in make_tables(whole, "zero-shot")[0].notes[0]


# --- the page


def test_charts_are_true(summary: Summary) -> None:
    page = render_benchmark([summary], "zero-shot")
    drawn = dict(re.findall(r"<h3>(.*?)</h3>\s*(<svg.*?</svg>)", page, re.DOTALL))
    columns = ("base", "new", "mean H")
    compared = {f"{data}: {column}" for data in ("dtd", "eurosat", "average") for column in columns}
    assert set(drawn) == {"dtd", "eurosat", *compared}
    differences = summary.differences("anprompt", "zero-shot")
    base, new = (differences["dtd", column].value for column in ("base", "new"))
    across, zeros = [], []
    for column in ("base", "new"):
        value, chart = differences["dtd", column], drawn[f"dtd: {column}"]
        ((title, (x, _)),) = marks(chart).items()
        assert title == f"anprompt {value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
        across.append(x)
        zeros.append(float(re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>0</text>', chart)[0]))
    assert zeros[0] == zeros[1], "one scale for a data set"
    assert (across[0] - zeros[0]) * new == pytest.approx((across[1] - zeros[1]) * base, abs=0.1)
    assert "<h3>dtd: base</h3>" not in render_benchmark([summary], "coop")


def test_the_answer_comes_first(summary: Summary) -> None:
    """A sentence and a picture for each data set; then tables, folded, sorted and marked."""
    first, second = (rankings for (rankings,) in rank_all(summary))
    mean_h = [np.mean([2 * base * new / (base + new) for base, new in runs]) for runs in (DTD, EUROSAT)]
    assert [each.method for each in first.methods] == ["anprompt", "zero-shot"]
    assert [ranking.methods[0].value for ranking in (first, second)] == pytest.approx(mean_h)
    assert first.methods[0].gain == summary.differences("anprompt", "zero-shot")["dtd", "H"]
    assert first.leaders == second.leaders == ["anprompt"]
    answer = "eurosat: anprompt has the highest H, 95.5 % (zero-shot CLIP 92.9 %)."
    assert sentence([second]) == answer
    page = render_benchmark([summary], "zero-shot")
    assert page.index(answer) < page.index("<h3>eurosat</h3>") < page.index("<details>") < page.index("<table")
    chart = dict(re.findall(r"<h3>(.*?)</h3>\s*(<svg.*?</svg>)", page, re.DOTALL))["dtd"]
    (_, (_, above)), (_, (_, below)) = sorted(marks(chart).items())
    assert above < below
    table = re.findall(r"<summary><h2>dtd</h2></summary>(.*?)</table>", page, re.DOTALL)[0]
    assert re.findall(r'<th scope="row" class="name">(.*?)</th>', table) == ["anprompt", "zero-shot"]
    assert re.findall(r'<td class="right">(\S+) ', table) == [f"{mean_h[0]:.2f}"]


def test_methods_that_are_not_told_apart_are_named() -> None:
    values = pd.Series({"d": 80.0, "zero-shot": 50.0, "a": 90.0, "c": 88.0, "b": 89.0, "e": 87.0, "f": 86.0})

    def difference(ours: str, theirs: str) -> Difference:
        value = values[ours] - values[theirs]
        return Difference(value, value - 5, value + 5, 3)

    ranking = rank("pets", "test", values, difference)
    assert ranking.leaders == ["a", "b", "c", "e", "f"]
    expected = (
        "pets: a has the highest accuracy (test), 90.0 % (zero-shot CLIP 50.0 %; not told apart: b, c, e, 1 more)."
    )
    assert sentence([ranking]) == expected
    assert ranking.methods[0].gain == Difference(40, 35, 45, 3)


def test_one_seed_tells_nothing_apart_but_names_the_best() -> None:
    (summary,) = summarise([each for each in records() if each["configuration"]["seed"] == 1])
    assert sentence(rank_all(summary)[0]) == "dtd: anprompt has the highest H, 68.6 % (zero-shot CLIP 64.6 %)."


def test_the_poster_is_one_picture(summary: Summary, tmp_path: Path) -> None:
    text = write_poster([summary], tmp_path / "picture.svg").read_text()
    root = ElementTree.fromstring(text)
    texts = ["".join(each.itertext()).strip(" \xa0") for each in root if each.tag.endswith("text")]
    assert texts == ["dtd", "eurosat", "● H", *charts.RANKING_NOTE.split("; ")]
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


@pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium")
def test_the_page_opens(summary: Summary, tmp_path: Path) -> None:
    path = write_benchmark([summary], "zero-shot", tmp_path / "new" / "page.html")
    with chromium.browser() as page:
        page.open(path.as_uri())
        assert page.complaints == []
        assert page.requests == [path.as_uri()]
        assert page.evaluate("document.querySelectorAll('figure svg').length") == 11
        assert page.evaluate("document.querySelectorAll('table').length") == 6
        for width in (1100, 390):
            page.show(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.badly_placed() == []


def test_the_page_escapes_names() -> None:
    made = records()
    for each in made[:6]:
        each["data"]["name"] = "<script>alert(1)</script>"
    page = render_benchmark(summarise(made), "anprompt")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert page.startswith("<!doctype html>")


# --- the command


def test_seeds() -> None:
    assert parse_seeds(["1-3", "7", "2", "10-10"]) == [1, 2, 3, 7, 10]
    for wrong in ("3-1", "a", "1-", "-1", ""):
        with pytest.raises(ValueError, match="must be a number, or a range such as 1-3"):
            parse_seeds([wrong])


def test_methods_of_the_file() -> None:
    settings: dict[str, Any] = {"coop": {"recipe": {"epochs": 5}}, "short": {"method": "coop", "words": "a"}}
    coop, short = ("coop", {"recipe": {"epochs": 5}}), ("coop", {"words": "a"})
    assert choose_methods(None, settings) == {"coop": coop, "short": short}
    assert choose_methods(["short", "maple"], settings) == {"short": short, "maple": ("maple", {})}
    assert settings["short"]["method"] == "coop"


def test_the_command_applies_what_is_published_for_single_data_sets(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Cell] = []

    def keep(cells: Sequence[Cell], *_: Any) -> list[Failed]:
        asked.extend(cells)
        return []

    monkeypatch.setattr("anprompt_cli.jobs.benchmark.run_grid", keep)
    monkeypatch.setattr("anprompt_cli.jobs.benchmark.collect", lambda output: output)
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "seeds: 1\ndata: [imagenet, photos]\nmethods: {coop: , short: {method: coop, recipe: {epochs: 3}}}"
    )
    assert main(["benchmark", "--config", str(grid), "--model", str(clip_folder), "--output", str(tmp_path)]) == 0
    methods: dict[str, Any] = {f"{each.data} {each.name}": each.method for each in asked}
    assert {name: method.recipe.epochs for name, method in methods.items()} == {
        "imagenet coop": 50, "imagenet short": 3, "photos coop": 200, "photos short": 3,
    }  # fmt: skip


def test_command(
    clip_folder: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    def fit(self, *given):\n"
        "        raise RuntimeError('as told')\n"
    )
    Path("grid.yaml").write_text(
        f"data: {digits}\nmodel: {clip_folder}\nseeds: [1, 2]\nshots: 1\nmethods:\n"
        "  zero-shot:\n  ensemble: {method: zero-shot, templates: ['the {}.']}\n"
    )
    run = ["benchmark", "--config", "grid.yaml", "--output", "grid"]
    assert main([*run, "--method", "zero-shot", "--method", "mine:Mine"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "failed: " in shown.err
    assert "mine:Mine, seed 1; " in shown.err
    assert "RuntimeError: as told" in shown.err
    assert main(run) == 0
    assert main(["benchmark", "report", "grid", "--reference", "zero-shot", "--html", "page.html"]) == 0
    shown = capsys.readouterr()
    assert "| ensemble  |" in shown.out
    assert "### Differences from zero-shot" in shown.out
    page = Path("page.html").read_text()
    assert page.count("<section>") == 1
    assert page.count("<details>") == 4, "three tables and the provenance, folded"
    configurations = [each["configuration"] for each in read_results(Path("grid"))]
    assert {(each["method"]["name"], each["seed"]) for each in configurations} == {
        (name, seed) for name in ("zero-shot", "ensemble") for seed in (1, 2)
    }
    assert main([*run, "--shard", "1/2"]) == main([*run, "--shard", "2/2"]) == 0
    assert len(read_results(Path("grid"))) == 4
    read: list[Path] = []
    monkeypatch.setattr(store, "read_cell", read.append)
    assert main(run) == 0
    assert len(read) == len(set(read)) == 4, "each cell is read once"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--data", "x", "--method", "zero-shot"], "error: --output: give at least one of each."),
        (["--output", "x"], "error: --data, --method: give at least one of each."),
        (["--data", "x", "--output", "g", "--method", "zero", "--model", "m"], "method 'zero' is unknown."),
        (["--data", "x", "--output", "g", "--method", "coop", "--seeds", "x"], "--seeds x must be a number"),
        (["--config", "file.yaml"], "unknown key 'metods'. Did you mean 'methods'?"),
        (["--config", "list.yaml"], "methods must hold names with settings"),
        (["report", "."], "holds no results of `anprompt benchmark`"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text("metods: {}")
    Path("list.yaml").write_text("methods: [coop]")
    assert main(["benchmark", *arguments]) == 2
    assert wanted in capsys.readouterr().err
