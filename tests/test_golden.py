"""Adapters that earlier releases saved answer as they did then: see docs/compatibility.md."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anprompt_peft.method.config import FORMAT_VERSION
from golden.make import EXPECTED, OTHERS, ROOT, TRAINED, load, make_adapters, outputs

CONFIG = "adapter_config.json"
FOLDER = ROOT / "tests" / "golden"
ADAPTERS = sorted(path.parent for path in FOLDER.glob(f"format-*/*/{CONFIG}"))
TOLERANCE = 1e-8  # of logits between -10 and 0, in float64
FAR = 1e-4
SKIPPED = {"anprompt_clean_features", "anprompt_perturbed_features", "anprompt_class_ids"}  # for losses; integers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def name_of(adapter: Path) -> str:
    return f"{adapter.parent.name}/{adapter.name}"


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours.keys() & theirs.keys())


@pytest.mark.parametrize("adapter", ADAPTERS, ids=name_of)
def test_answers_as_when_it_was_saved(adapter: Path) -> None:
    expected, found = load_file(adapter / EXPECTED), outputs(load(adapter))
    assert found.keys() == expected.keys()
    assert expected["trained.logits"].shape == (2, len(TRAINED))
    assert expected["others.logits"].shape == (2, len(OTHERS))
    for name in expected:
        assert expected[name].dtype == found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=name_of)
def test_every_stored_value_counts(adapter: Path) -> None:
    """Shifting any one of the tensors that inference reads changes the answers by far more than the tolerance."""
    model: Any = load(adapter)
    expected = load_file(adapter / EXPECTED)
    silent = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "anprompt_" in name and tensor.numel() and not SKIPPED & set(name.split(".")):
            before = tensor.detach().clone()
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).double()
            model.eval()
            if distance(outputs(model), expected) < FAR:
                silent.append(name)
            tensor.data.copy_(before)
    assert silent == []


@pytest.mark.parametrize("folder", sorted({adapter.parent for adapter in ADAPTERS}), ids=lambda folder: folder.name)
def test_no_two_answer_alike(folder: Path) -> None:
    stored = {path.parent.name: load_file(path) for path in sorted(folder.glob(f"*/{EXPECTED}"))}
    assert len(stored) >= 7
    for (first, ours), (second, theirs) in itertools.combinations(stored.items(), 2):
        assert distance(ours, theirs) > 1000 * FAR, (first, second)
    for ours in stored.values():
        alike = (ours["trained.logits"] - ours["trained.logits_class"]).abs().max() <= 1000 * FAR
        assert alike == ("trained.logits_prototype" not in ours)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_fields_that_are_not_there_have_the_default_of_their_format(version: int, tmp_path: Path) -> None:
    """Without any field but the classes, the default adapter of each format answers as with all of them."""
    stored = FOLDER / f"format-{version}" / "default"
    fields = json.loads((stored / CONFIG).read_text())
    kept = {"peft_type", "base_model_name_or_path", "class_names", "text_layers", "vision_layers", "format_version"}
    shutil.copytree(stored, tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps({name: fields[name] for name in kept}))
    assert distance(outputs(load(tmp_path / "adapter")), load_file(stored / EXPECTED)) < TOLERANCE


def test_every_format_has_adapters() -> None:
    formats = {json.loads((adapter / CONFIG).read_text())["format_version"] for adapter in ADAPTERS}
    assert formats == set(range(1, FORMAT_VERSION + 1))
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 440_000


def test_stored_adapters_are_not_replaced() -> None:
    """Making them again needs `--force`."""
    for folder in FOLDER.glob("format-*"):
        with pytest.raises(FileExistsError, match="not empty"):
            make_adapters(folder)
