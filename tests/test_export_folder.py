"""The handwritten digits as an image folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import export_folder
from handwriting import CLASS_NAMES, load_split


def test_every_digit_lies_in_the_folder_of_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_folder.main([str(tmp_path / "digits")]) == {"train": 359, "test": 720}
    assert "359 train, 720 test images" in capsys.readouterr().out
    for split in ("train", "test"):
        images, labels = load_split(split)
        for number, name in enumerate(CLASS_NAMES):
            files = sorted((tmp_path / "digits" / split / name).iterdir())
            expected = [images[row] for row in np.flatnonzero(labels == number)]
            assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in expected]


def test_limit_is_per_class_and_split(tmp_path: Path) -> None:
    assert export_folder.main([str(tmp_path), "--limit", "3"]) == {"train": 30, "test": 30}
    counts = Counter(file.parent.relative_to(tmp_path) for file in tmp_path.rglob("*.png"))
    assert set(counts.values()) == {3}
    assert len(counts) == 20


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    limit = [str(tmp_path / "new"), "--limit", "0"]
    for arguments, message in [([str(tmp_path)], "is not empty"), (limit, "at least 1")]:
        with pytest.raises(SystemExit, match="2"):
            export_folder.main(arguments)
        assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Image.Image.save, 0

    def fail_later(image: Image.Image, path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved == 50:
            raise OSError("no space left")
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", fail_later)
    with pytest.raises(OSError, match="no space left"):
        export_folder.export(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
