"""Trainings that are killed, or that cannot write, end as undisturbed ones once they are resumed."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

import kill
from export_folder import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="needs os.fork"),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    export(tmp_path / "digits", 2)
    return tmp_path / "digits"


@pytest.mark.parametrize("kills", [3, 100])
@pytest.mark.parametrize("name", kill.RUNS)
def test_killed_trainings_resume_exactly(name: str, kills: int, data: Path, tmp_path: Path) -> None:
    counts = kill.kill_and_resume(name, data, tmp_path / "work", kills)
    assert counts["kills"] >= kills
    assert counts["failed"] == 0
    assert counts["same weights"] == counts["runs"]


@pytest.mark.parametrize("name", kill.RUNS)
def test_a_full_disk_is_told_and_the_run_can_go_on(name: str, data: Path, tmp_path: Path) -> None:
    counts = kill.fill_and_resume(name, data, tmp_path / "work", every=7)
    assert counts["failures"] == counts["told"] == counts["same weights"] > 3
