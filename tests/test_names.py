"""Class names as people write them, and the halves that are stored by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anprompt_peft.data import ClassHalves, halves, readable, readable_names
from anprompt_peft.data.names import codes


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("black_footed-albatross", "black footed albatross"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("AnnualCrop", "Annual Crop"),
        ("seaLake", "sea Lake"),
        ("caféNoir", "café Noir"),
        ("  two   words ", "two words"),
        ("_hidden__name_", "hidden name"),
        ("707-320", "707 320"),
        ("3.5 inch disk", "3.5 inch disk"),
        ("ATMs", "ATMs"),
        ("-", "-"),
        ("42.", "42."),
        ("zero", "zero"),
    ],
)
def test_readable(raw: str, clean: str) -> None:
    assert readable(raw) == clean


def test_names_that_are_codes() -> None:
    found = ["0", "12", "n01440764", "class_3", "Label-2", "c0"]
    assert codes([*found, "A", "class", "707 320 jet", "Boeing 737", "zero", "чай 2", "3D printer"]) == found


@given(st.text(alphabet="aBz9._- é", min_size=1))
def test_readable_is_stable(name: str) -> None:
    """Cleaning twice is cleaning once, and nothing is left to clean."""
    clean = readable(name)
    assert readable(clean) == clean == clean.strip()
    if any(character.isalnum() for character in name):
        assert clean == " ".join(clean.replace("_", " ").replace("-", " ").split())


def test_names_that_read_alike_raise() -> None:
    assert readable_names(["sea_lake", "AnnualCrop"]) == ["sea lake", "Annual Crop"]
    with pytest.raises(ValueError, match=r"read alike.*'sea lake': \['sea_lake', 'sea-lake'\]"):
        readable_names(["sea_lake", "forest", "sea-lake"])


def test_halves_take_the_first_half_rounded_up_in_the_given_order(tmp_path: Path) -> None:
    split = halves(["zebra", "ant", "gnu", "bee", "cat"])
    assert split == ClassHalves(("zebra", "ant", "gnu"), ("bee", "cat"))
    split.save(tmp_path / "halves.json")
    assert ClassHalves.load(tmp_path / "halves.json") == split
    assert json.loads(split.to_json()) == {"base": ["zebra", "ant", "gnu"], "new": ["bee", "cat"]}


@pytest.mark.parametrize(("base", "new"), [(("a", "b"), ()), ((), ("a", "b")), (("a", "b"), ("b",)), (("a",), (" ",))])
def test_halves_must_be_two_and_disjoint(base: tuple[str, ...], new: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"half needs a class|repeated|empty"):
        ClassHalves(base, new)


def test_an_interrupted_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = halves(["ant", "bee"])
    old.save(tmp_path / "halves.json")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            halves(["cat", "dog"]).save(tmp_path / "halves.json")
    assert ClassHalves.load(tmp_path / "halves.json") == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["halves.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"base": ["a", "b"]}', '{"base": "ab", "new": "cd"}', '{"base": [1], "new": [2]}']
)
def test_a_file_that_holds_no_halves_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "halves.json").write_text(text)
    with pytest.raises(ValueError, match=r"halves\.json does not hold two halves"):
        ClassHalves.load(tmp_path / "halves.json")
