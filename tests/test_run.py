"""run.py: its commands from any folder, without the noise of other libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import get_peft_model
from transformers import CLIPModel

from anprompt_peft import ANPromptConfig
from handwriting import CLASS_NAMES, TEMPLATE

ROOT = Path(__file__).parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module run.py, for this environment in place of one of its own."""
    monkeypatch.syspath_prepend(ROOT)
    module = import_module("run")
    monkeypatch.setattr(module, "set_up", lambda: None)
    monkeypatch.setattr(module, "PYTHON", sys.executable)
    return module


@pytest.fixture
def elsewhere(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another current folder, with an adapter and an image in it."""
    config = ANPromptConfig(class_names=list(CLASS_NAMES), template=TEMPLATE)
    get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config).save_pretrained(str(tmp_path / "adapter"))
    shutil.copy(digits / "test" / "six" / "000.png", tmp_path / "six.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_are_classified_from_any_folder_and_nothing_else_is_printed(
    run: ModuleType, elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["classify", "six.png", "--adapter", "adapter"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("six.png: ")
    assert out.count("%") == 3
    assert "Warning" not in err
    assert "Loading weights" not in err


class Started(list[list[str]]):
    """The arguments of all processes that would have been started; those of `broken` fail."""

    broken: list[str] | None = None

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.append(command[1:])
        return subprocess.CompletedProcess(command, 3 if command[1:] == self.broken else 0)


@pytest.fixture
def started(run: ModuleType, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(run.subprocess, "run", started)
    return started


def test_the_digits_go_to_the_checkout_unless_the_reader_says_otherwise(run: ModuleType, started: Started) -> None:
    for further in ([], ["--output", "mine"]):
        assert run.main(["digits", *further]) == 0
    assert started[0][-1] == f"--output={ROOT}/outputs/digits"
    assert started[1] == [*started[0], "--output", "mine"], "the last one counts"


def test_checks_stop_at_the_first_failure_and_take_paths_from_any_folder(run: ModuleType, started: Started) -> None:
    started.broken = ["-m", "mypy"]
    assert run.main(["test"]) == 3
    assert started == [["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"], ["-m", "mypy"]]
    started.broken = None
    assert run.main(["test", "six.png", "-x"]) == 0
    assert started[-1] == ["-m", "pytest", *run.IN_PROCESSES, str(Path("six.png").resolve()), "-x"]


def test_the_comparison_says_what_is_wrong_with_seeds(
    run: ModuleType, elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["compare", "--output", "grid", "--seeds", "one"]) == 2
    assert "--seeds one must be a number, or a range such as 1-3." in capfd.readouterr().err
    assert not Path("grid").exists()


def test_unknown_commands_are_named(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["clasify", "six.png"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: unknown command 'clasify'. Choose one of: compare, digits, classify, test.\n")
    assert run.main([]) == 2
    assert "error" not in capsys.readouterr().err
    assert run.main(["--help"]) == 0
    assert "run.py classify IMAGE" in capsys.readouterr().out
