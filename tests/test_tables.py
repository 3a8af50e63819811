"""Tables of files and labels, and the choice and names of classes on the command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from anprompt_cli.evaluate import EvaluateOptions
from anprompt_cli.jobs import train as training_job
from anprompt_cli.jobs.evaluate import _load as load_measured
from anprompt_cli.jobs.labelled import choose_classes, chosen_classes, load_splits
from anprompt_cli.jobs.seen import Run
from anprompt_cli.options import DataOptions
from anprompt_peft.data import class_names_of, load_image_data
from anprompt_peft.data.tables import read_table
from command import call, refused
from photographs import photograph

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
ROWS = [(f"shots/{number}.png", ("cat", "dog", "wild owl")[number % 3]) for number in range(9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shots").mkdir()
    for number in range(9):
        photograph(number, (24, 24)).save(tmp_path / "shots" / f"{number}.png")
    return tmp_path


def write(folder: Path, rows: Sequence[Sequence[str]], head: Sequence[str] = ("file", "label"), by: str = ",") -> Path:
    path = folder / "photos.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=by).writerows([head, *rows])
    return path


def listed(data: Dataset) -> list[tuple[str, str]]:
    names = class_names_of(data)
    paths = [Path(each["path"]) for each in data.with_format(None).cast_column("image", plain())["image"]]
    return [(f"shots/{path.name}", names[label]) for path, label in zip(paths, data["label"], strict=True)]


def plain() -> Any:
    from anprompt_peft.data import RGBImage

    return RGBImage(decode=False)


# tables


@pytest.mark.parametrize("by", [",", ";", "\t", "|"])
@pytest.mark.parametrize("head", [("file", "label"), ("Bild", "Art des Tieres")])
def test_any_two_columns_and_any_delimiter(head: tuple[str, str], by: str, folder: Path) -> None:
    data = load_image_data(write(folder, ROWS, head, by))
    assert list(data) == ["train"]
    assert listed(data["train"]) == ROWS
    assert data["train"][0]["image"].size == (24, 24)


def test_columns_are_chosen_by_name(folder: Path) -> None:
    rows = [(number, file, f"thumbs/{file}", label, label.upper()) for number, (file, label) in enumerate(ROWS)]
    path = write(folder, [tuple(map(str, row)) for row in rows], ("id", "file", "small", "kind", "code"))
    for column, rest in ((None, "file, small could be meant"), ("file", "id, small, kind, code could be meant")):
        with pytest.raises(ValueError, match=rest):
            load_image_data(path, image_column=column)
    assert listed(load_image_data(path, "train", image_column="file", label_column="kind")) == ROWS
    with pytest.raises(ValueError, match="there is no column sort, only id, file, small, kind, code"):
        load_image_data(path, image_column="file", label_column="sort")


def test_a_column_may_tell_the_split(folder: Path) -> None:
    parts = ["Train"] * 5 + ["val", "val", "testing", "TEST"]
    data = load_image_data(
        write(folder, [(*row, part) for row, part in zip(ROWS, parts, strict=True)], ("file", "label", "split"))
    )
    assert {split: listed(part) for split, part in data.items()} == {
        "train": ROWS[:5], "validation": ROWS[5:7], "test": ROWS[7:]
    }  # fmt: skip
    kinds = [(file, "first" if number % 2 else "second") for number, (file, _) in enumerate(ROWS)]
    assert list(load_image_data(write(folder, kinds, ("file", "split")))) == ["train"]


def test_numbers_are_classes_in_the_order_of_numbers(folder: Path) -> None:
    path = write(folder, [(file, str(number + 2)) for number, (file, _) in enumerate(ROWS)])
    assert read_table(path).class_names == [str(number) for number in range(2, 11)]
    named = load_image_data(path, "train", class_names=[f"animal {number}" for number in range(9)])
    assert listed(named) == [(file, f"animal {number}") for number, (file, _) in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], "lists no images."),
        ([*ROWS, ("shots/0.png", "dog")], "shots/0.png has two labels, 'cat' and 'dog'. Keep one."),
        ([*ROWS, ("shots/1.png", " ")], "the column label is empty in row 10."),
        ([(file, "cat") for file, _ in ROWS], "the column label has one class only, cat."),
        (
            [*ROWS, ("a.png", "cat", "dog")],
            "cannot be read as a table: row 10 has 3 columns, and the first line names 2.",
        ),
    ],
)
def test_wrong_tables_are_refused(rows: list[tuple[str, ...]], wanted: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=wanted.replace(".", r"\.")):
        read_table(write(folder, rows))


def test_missing_files_are_named(folder: Path) -> None:
    path = write(folder, [*ROWS, ("shots/gone.png", "cat")])
    with pytest.raises(FileNotFoundError, match=r"1 of 10 files are not in .*: shots/gone\.png\."):
        load_image_data(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_image_data(folder / "nowhere.csv")
    assert "nowhere.csv" in refused("data", folder / "nowhere.csv")
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        load_image_data(path)


def test_metadata_beside_the_images_are_read(folder: Path) -> None:
    with (folder / "shots" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *((Path(name).name, label) for name, label in ROWS)])
    assert sorted(listed(load_image_data(folder / "shots", "train"))) == ROWS


# classes


def options(data: Path, **given: Any) -> DataOptions:
    unset: dict[str, Any] = dict.fromkeys(each.name for each in fields(DataOptions))
    return DataOptions(**{**unset, "data": str(data), **given})


def test_classes_are_renamed_and_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By new names, in the order of the data; a class may be renamed by its name in the data or as it is shown."""
    data = write(folder, [(file, label.replace(" ", "_")) for file, label in ROWS])
    for old in ("wild_owl", "wild owl"):
        asked = options(data, rename=[f"{old}=owl", "dog=wolf"], classes=["owl", "cat"])
        splits = choose_classes(load_splits(asked), asked)
        assert class_names_of(splits["train"]) == ["cat", "owl"]
        assert len(splits["train"]) == 6
        assert "Chosen: 2 of 3 classes." in capsys.readouterr().err
    asked = options(data, without_classes=["dog"])
    assert class_names_of(choose_classes(load_splits(asked), asked)["train"]) == ["cat", "wild owl"]
    assert chosen_classes(["a", "b", "c", "d"], options(data, without_classes=["a"]), ["c", "b", "a"]) == ["c", "b"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            ["--classes", "cat", "--classes", "dgo"],
            "--classes dgo: the data have no such class, only cat, dog, wild owl. Did you mean 'dog'?",
        ),
        (["--without-classes", "fox"], "--without-classes fox: the data have no such class, only cat, dog, wild owl."),
        (["--without-classes", "cat", "--without-classes", "dog"], "leave 1 classes, and two are needed."),
        (["--rename", "cat"], "--rename cat must be OLD=NEW, two names of a class."),
        (["--rename", "cat=a", "--rename", "cat=b"], "--rename gives 'cat' two names, 'a' and 'b'. Keep one."),
        (["--rename", "fox=wolf"], "--rename renames ['fox'], which are not among the data's classes"),
        (["--rename", "cat=dog"], "must all be different, these are repeated: ['dog']."),
        (["--rename", "cat=a", "--class-names", "b"], "--class-names and --rename exclude each other."),
    ],
)
def test_wrong_choices_of_classes_are_refused_alike(given: list[str], wanted: str, folder: Path) -> None:
    """By the commands that read labelled images; the adapter is loaded before them."""
    data = write(folder, ROWS)
    for command in (["data", data], ["train", data, "--output", folder / "out", "--model", TINY_CLIP]):
        assert wanted in refused(*command, *given)
    assert not (folder / "out").exists()


def test_a_file_and_a_list_of_names_beside_new_names(folder: Path) -> None:
    data, names = write(folder, ROWS), folder / "names.json"
    names.write_text('{"dog": "wolf"}')
    both = options(data, classes_file=names, rename=["cat=lynx"])
    assert class_names_of(load_splits(both)["train"]) == ["lynx", "wolf", "wild owl"]
    with pytest.raises(ValueError, match="--rename and --classes-file both rename dog"):
        load_splits(replace(both, rename=["dog=fox"]))
    with pytest.raises(ValueError, match="--rename and a list of all class names exclude each other"):
        load_splits(options(data, rename=["dog=fox"]), ["a", "b", "c"])


def test_a_run_records_its_classes_and_evaluation_its_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation of the same data renames as training did, and its classes are the adapter's anyway."""
    monkeypatch.setattr(training_job, "_train", None)  # what follows the record
    data = write(folder, ROWS)
    call(
        "train",
        data,
        "--output",
        folder / "out",
        "--model",
        TINY_CLIP,
        "--rename",
        "dog=wolf",
        "--without-classes",
        "cat",
    )
    record = yaml.safe_load((folder / "out" / "run.yaml").read_text())
    assert (record["rename"], record["without_classes"]) == (["dog=wolf"], ["cat"])
    empty: dict[str, Any] = dict.fromkeys(each.name for each in fields(EvaluateOptions))
    asked = EvaluateOptions(**{**empty, "data": str(data), "split": "train"})
    splits, notes = load_measured(asked, Run(data=str(data), rename=["dog=wolf"]), None)
    assert class_names_of(splits["train"]) == ["cat", "wolf", "wild owl"]
    assert "--rename of run.yaml" in notes[0]
