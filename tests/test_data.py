"""Loading labelled images from folders and parquet files, streamed or not; draws, splits and classes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from PIL import Image

from anprompt_peft.data import (
    ClassHalves,
    RGBImage,
    ShotsError,
    class_names_of,
    few_shot,
    halves,
    load_image_data,
    sample_shots,
    select_classes,
    split_data,
)
from export_folder import export
from handwriting import CLASS_NAMES, load_split

LIMIT = 4


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as an image folder with the splits train and test."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    export(folder, LIMIT)
    return folder


@pytest.fixture(scope="module")
def parquet(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as parquet files, two for train and one for test, with the images in them."""
    folder = tmp_path_factory.mktemp("data") / "parquet"
    folder.mkdir()
    parts = load_image_data(digits)
    for number in range(2):
        parts["train"].shard(2, number).to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    parts["test"].to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def broken_folder(folder: Path, classes: dict[str, int]) -> Path:
    """An image folder in which no image can be decoded: whoever touches one fails."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_text("no image")
    return folder


def table(columns: dict[str, Any], features: dict[str, Any], path: Path) -> Path:
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return path


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(count)]


def contents(dataset: Any) -> list[tuple[bytes, str]]:
    """Pixels and class name of every example, in an order of their own."""
    names = class_names_of(dataset)
    return sorted((example["image"].tobytes(), names[example["label"]]) for example in dataset)


def test_a_folder_gives_splits_names_and_rgb_images(digits: Path) -> None:
    data = load_image_data(digits)
    assert set(data) == {"train", "test"}
    assert data["train"].column_names == ["image", "label"]
    assert class_names_of(data["train"]) == sorted(CLASS_NAMES)
    assert data["train"].features["image"] == RGBImage()
    assert isinstance(data["train"].features["image"], ImageFeature)
    expected: list[tuple[bytes, str]] = []
    for image, label in zip(*load_split("test"), strict=True):
        if [name for _, name in expected].count(CLASS_NAMES[label]) < LIMIT:
            expected.append((image.tobytes(), CLASS_NAMES[label]))
    assert contents(data["test"]) == sorted(expected)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["folder", "parquet folder", "glob", "file"])
def test_every_source_gives_the_same(digits: Path, parquet: Path, source: str, streaming: bool) -> None:
    """Folder or parquet, streamed or not: the same images under the same names."""
    sources: dict[str, list[str | Path]] = {
        "folder": [digits],
        "parquet folder": [parquet],
        "glob": [f"{parquet}/train-*.parquet"],
        "file": sorted(parquet.glob("train-*")),
    }
    loaded = [load_image_data(each, "train", streaming=streaming) for each in sources[source]]
    expected = contents(load_image_data(digits, "train"))
    assert sorted(pair for data in loaded for pair in contents(data)) == expected
    for data in loaded:
        assert isinstance(data, IterableDataset if streaming else Dataset)
        assert data.features == Features({"image": RGBImage(), "label": ClassLabel(names=sorted(CLASS_NAMES))})


def test_parts_of_splits(digits: Path) -> None:
    assert len(load_image_data(str(digits), "train[:25%]")) == 10 * LIMIT // 4
    assert set(load_image_data(digits, streaming=True)) == {"train", "test"}


def test_classes_named_like_splits(tmp_path: Path) -> None:
    """`train_station` is a class, as is a folder `test` without folders in it, and odd characters are only letters."""
    folder = tmp_path / "wh[a]t * name?"
    broken_folder(folder, {"train_station": 2, "test_tube": 3, "test": 1, "val-thorens": 2})
    data = load_image_data(folder)
    assert set(data) == {"train"}
    counts = Counter(np.array(class_names_of(data["train"]))[data["train"]["label"][:]].tolist())
    assert counts == {"train station": 2, "test tube": 3, "test": 1, "val thorens": 2}


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "Testing")])
def test_a_folder_with_metadata(splits: tuple[str, str], tmp_path: Path) -> None:
    """Labels in a table beside the images, as datasets reads them."""
    for split, kinds in zip(splits, [["sea_cow", "ant"], ["ant"]], strict=True):
        (tmp_path / split).mkdir()
        for number, picture in enumerate(pictures(len(kinds))):
            picture.save(tmp_path / split / f"{number}.png")
        rows = [f"{number}.png,{kind}" for number, kind in enumerate(kinds)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,kind", *rows]))
    data = load_image_data(tmp_path)
    assert class_names_of(data["test"]) == ["ant", "sea cow"]
    assert {split: part["label"][:] for split, part in data.items()} == {"train": [1, 0], "test": [0]}


def test_split_folders_by_other_names(tmp_path: Path) -> None:
    for split in ("train", "val", "extra"):
        broken_folder(tmp_path / split, {"train_station": 1, "test_tube": 2})
    data = load_image_data(tmp_path)
    assert {split: len(part) for split, part in data.items()} == {"train": 3, "validation": 3}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Path("no/such"), "neither a folder, nor a parquet file"),
        ("./no_such", "neither a folder"),
        ("/no/such/folder", "neither a folder"),
        ("no/such.parquet", r"no file no/such\.parquet"),
        ("no/*.parquet", "no file"),
    ],
)
def test_missing_sources_are_named(source: str | Path, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        load_image_data(source)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileNotFoundError, match="holds neither images nor parquet files"):
        load_image_data(tmp_path)
    broken_folder(tmp_path, {"only": 2})
    with pytest.raises(ValueError, match=r"images of one class only, 'only'.*two or more sub-folders"):
        load_image_data(tmp_path)


def tree(folder: Path, *files: str) -> Path:
    """A folder with files that are no images, whatever they are called; a name that ends with / is a folder."""
    for name in files:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("no image")
    return folder


def counted(folder: Path, **options: Any) -> dict[str, dict[str, int]]:
    """The number of images of each class of each split."""
    return {
        split: dict(Counter(class_names_of(part)[label] for label in part["label"][:]))
        for split, part in load_image_data(folder, **options).items()
    }


def read(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, dict[str, int]], str]:
    """What a folder holds, and what is told about it."""
    caplog.clear()
    with caplog.at_level("INFO", "anprompt_peft.data.loading"):
        found = counted(folder)
    return found, "\n".join(record.getMessage() for record in caplog.records).replace(f"{folder}", "FOLDER")


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "evaluation"), ("Training", "Eval"), ("train", "Val")],
)
def test_spellings_of_splits(names: tuple[str, str], tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog")))
    assert [dict(part) for part in counted(tmp_path).values()] == [{"cat": 1, "dog": 1}] * 2
    assert set(counted(tmp_path)) == {"train", "validation" if names[1] == "Val" else "test"}


@pytest.mark.parametrize("names", [("train", "Train"), ("train", "training"), ("test", "eval"), ("val", "valid")])
def test_one_split_under_two_names_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog")))
    with pytest.raises(ValueError, match=f"{' and '.join(f'{name}/' for name in sorted(names))} are both the split"):
        load_image_data(tmp_path)


def test_what_lies_beside_splits_and_classes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    assert read(tmp_path, caplog)[1] == ""
    tree(
        tmp_path, "owl/1.png", "owl/2.png", "extra/ox/1.png", "0.png", "train/2.png", "validation/1.png", "docs/a.txt"
    )
    found, told = read(tmp_path, caplog)
    assert found == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}}
    assert told.splitlines() == [
        "Left out of FOLDER: .txt 1.",
        "FOLDER: left out, as they are outside the folders of splits and classes: ./ (1 image), extra/ (1 image), "
        "owl/ (2 images), validation/ (1 image), train/ (1 image).",
    ]
    flat = tree(tmp_path / "flat", "cat/1.png", "dog/1.png", "0.png", "1.png")
    found, told = read(flat, caplog)
    assert (found, told) == (
        {"train": {"cat": 1, "dog": 1}},
        "FOLDER: left out, as they are outside the folders of splits and classes: ./ (2 images).",
    )


def test_folders_without_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "cat/1.png", "dog/1.png", "owl/1.heiq", "owl/2.heiq", "owl/3.txt", "ox\n/", "yak/.1.png")
    found, told = read(tmp_path, caplog)
    assert found == {"train": {"cat": 1, "dog": 1}}
    assert "left out, as they hold no image that is read: owl/ (.heiq 2, .txt 1), ox\\n/, yak/." in told
    splits = tree(tmp_path / "splits", "train/cat/1.png", "train/dog/1.png", "train/ox/", "test/cat/", "docs/a.txt")
    found, told = read(splits, caplog)
    assert found == {"train": {"cat": 1, "dog": 1}}
    assert told.endswith("left out, as they hold no image that is read: test/, train/ox/.")


def test_a_class_is_a_folder_with_all_below_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "cat/1.png", "cat/in/2.png", "cat/in/a/3.png", "dog/1.png", "ox/out/1.png", "ox/out/2.png")
    found, told = read(tmp_path, caplog)
    assert found == {"train": {"cat": 3, "dog": 1, "ox": 2}}
    assert told == "FOLDER: counted for the class above: cat/in/ (2 images), ox/out/ (2 images)."


@pytest.mark.parametrize(
    "files",
    [
        ("animals/cat/1.png", "animals/dog/1.png", "plants/rose/1.png"),
        ("cat/train/1.png", "cat/test/1.png", "dog/train/1.png"),
        ("training_set/cat/1.png", "training_set/dog/1.png", "test_set/cat/1.png"),
        ("train/animals/cat/1.png", "train/plants/rose/1.png"),
    ],
)
def test_classes_that_may_be_either_level_are_refused(files: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not tell its classes: are they .*, or the folders in them"):
        load_image_data(tree(tmp_path, *files))


def test_a_folder_around_classes_or_splits_is_looked_into(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = tree(tmp_path / "a", "photos/cat/1.png", "photos/dog/1.png", "__MACOSX/photos/cat/._1.png")
    found, told = read(plain, caplog)
    assert found == {"train": {"cat": 1, "dog": 1}}
    assert "FOLDER: read is the only folder in it: photos/." in told
    split = tree(tmp_path / "b", "x/y/Train/cat/1.png", "x/y/Train/dog/1.png", "x/y/Test/cat/1.png")
    assert counted(split) == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1}}


@pytest.mark.parametrize("files", [("0.png", "1.png"), ("train/1.png", "test/1.png")])
def test_images_without_classes_are_refused(files: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folders of classes"):
        load_image_data(tree(tmp_path, *files))


def test_names_that_differ_in_unicode_form_or_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    tree(tmp_path / "a", f"train/{composed}/1.png", "train/dog/1.png", f"test/{decomposed}/1.png")
    found, told = read(tmp_path / "a", caplog)
    assert (found, told) == ({"train": {composed: 1, "dog": 1}, "test": {composed: 1}}, "")
    tree(tmp_path / "b", f"{composed}/1.png", f"{decomposed}/1.png", "dog/1.png", "Dog/1.png")
    found, told = read(tmp_path / "b", caplog)
    assert found == {"train": {composed: 2, "dog": 1, "Dog": 1}}
    assert f"one class, as the names differ in their Unicode form only: {decomposed}/ and {composed}/." in told
    assert "different classes, though CLIP reads their names alike: Dog/ and dog/." in told


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1.png", "dog/1.png", "dog/" + os.fsdecode(b"\xff.png"))
    with pytest.raises(ValueError, match=r"not UTF-8.*dog/\\udcff.png"):
        load_image_data(tmp_path)


def test_hidden_files_and_other_endings_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What macOS, Jupyter, Synology and Windows leave beside pictures is no class and no picture."""
    tree(tmp_path, "cat/1.png", "dog/1.JPG", "cat/a.psd", "dog/b.PSD", "notes.txt", "LICENSE")
    tree(tmp_path, "__MACOSX/cat/._1.png", "cat/._1.png", "@eaDir/1.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg")
    tree(tmp_path, ".ipynb_checkpoints/1.png", "cat/Thumbs.db", "desktop.ini", ".DS_Store", "#recycle/1.png")
    found, told = read(tmp_path, caplog)
    assert found == {"train": {"cat": 1, "dog": 1}}
    assert told == (
        "Left out of FOLDER: .psd 2, no ending 1, .txt 1; "
        "hidden 9 (#recycle, .DS_Store, ._1.png, .ipynb_checkpoints, @eaDir, 3 more)."
    )


def test_linked_folders_are_read_without_end_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "real", "cat/1.png", "dog/1.png")
    folder = tree(tmp_path / "photos", "train/")
    for name in ("cat", "dog"):
        (folder / "train" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "all").symlink_to(tmp_path)
    (folder / "test").symlink_to("train")
    found, told = read(folder, caplog)
    assert {split: set(classes) for split, classes in found.items()} == {
        "train": {"cat", "dog"},
        "test": {"cat", "dog"},
    }
    assert found["train"]["dog"] == 1
    assert "linked folders not followed" in told


def test_parts_of_folders_are_those_of_datasets(digits: Path) -> None:
    """Order, labels and splits are those of `load_dataset`, so that the same shots are drawn."""
    folder = {"train": f"{digits}/train/**", "test": f"{digits}/test/**"}
    for split in ("train", "train[3:9]", "test[-25%:]", "train[:10%]+test", "all"):
        expected = datasets.load_dataset("imagefolder", data_files=folder, split=split)
        pairs = [(each["image"].tobytes(), each["label"]) for each in expected.cast_column("image", RGBImage())]
        for streaming in (False, True):
            found = load_image_data(digits, split, streaming=streaming)
            assert [(each["image"].tobytes(), each["label"]) for each in found] == pairs
    with pytest.raises(ValueError, match='Unknown split "dev"'):
        load_image_data(digits, "dev")


def test_options_of_the_hub_are_refused_elsewhere(digits: Path, parquet: Path) -> None:
    for source in (digits, f"{parquet}/*.parquet"):
        with pytest.raises(ValueError, match="name and revision cannot be given"):
            load_image_data(source, name="plain", revision="main")
    with pytest.raises(ValueError, match="revision cannot be given"):
        load_image_data(parquet, revision="main")


def test_strings_become_classes_alike_in_every_split(tmp_path: Path) -> None:
    """The names come from all splits, so that a split without some of them numbers the others as training did."""
    features = {"photo": ImageFeature(), "kind": Value("string")}
    table({"photo": pictures(3), "kind": ["sea_cow", "ant", "bee"]}, features, tmp_path / "train.parquet")
    table({"photo": pictures(1), "kind": ["sea_cow"]}, features, tmp_path / "test.parquet")
    test = load_image_data(tmp_path, "test")
    assert class_names_of(test) == ["ant", "bee", "sea cow"]
    assert test["label"][:] == [2]
    train = load_image_data(tmp_path, "train", class_names=["sea_cow", "bee", "ant"])
    assert (class_names_of(train), train["label"][:]) == (["sea_cow", "bee", "ant"], [0, 2, 1])
    renamed = load_image_data(tmp_path, "train", class_names={"sea_cow": "manatee"})
    assert (class_names_of(renamed), renamed["label"][:]) == (["ant", "bee", "manatee"], [2, 0, 1])


def test_streamed_strings_need_their_names(tmp_path: Path) -> None:
    features = {"photo": ImageFeature(), "kind": Value("string")}
    file = table({"photo": pictures(3), "kind": ["sea_cow", "ant", "bee"]}, features, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"strings \(kind\) need class_names"):
        load_image_data(file, "train", streaming=True)
    stream = load_image_data(file, "train", streaming=True, class_names=["sea_cow", "ant", "bee"])
    assert [example["label"] for example in stream] == [0, 1, 2]
    short = load_image_data(file, "train", streaming=True, class_names=["sea_cow", "ant"])
    with pytest.raises(ValueError, match=r"labels \['bee'\] are none of"):
        list(short)


def test_integers_need_their_names(tmp_path: Path) -> None:
    features = {"image": ImageFeature(), "label": Value("int64")}
    file = table({"image": pictures(3), "label": [0, 2, 1]}, features, tmp_path / "train.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="need class_names, a list with the name of every label"):
            load_image_data(file, "train", streaming=streaming)
    with pytest.raises(ValueError, match="need class_names, a list"):
        load_image_data(file, "train", class_names={"0": "ant"})
    with pytest.raises(ValueError, match=r"labels \[2\] are none of the 2 classes"):
        load_image_data(file, "train", class_names=["ant", "bee"])
    data = load_image_data(file, "train", class_names=["ant", "bee", "cat"])
    assert (class_names_of(data), data["label"][:]) == (["ant", "bee", "cat"], [0, 2, 1])


def test_missing_labels_are_not_guessed(tmp_path: Path) -> None:
    features = {"image": ImageFeature(), "label": Value("string")}
    file = table({"image": pictures(3), "label": ["ant", None, "bee"]}, features, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"labels \[None\] are none of"):
        load_image_data(file, "train")
    unlabelled = {"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee"])}
    data = load_image_data(
        table({"image": pictures(2), "label": [-1, 1]}, unlabelled, tmp_path / "t.parquet"), "train"
    )
    assert data["label"][:] == [-1, 1]
    with pytest.raises(ValueError, match="1 of 2 examples have no label from 0 to 1"):
        few_shot(data, 1, seed=0)


def test_columns_are_found_by_type_and_ambiguity_is_named(tmp_path: Path) -> None:
    fine, coarse = ClassLabel(names=["ant", "cat"]), ClassLabel(names=["insect", "mammal"])
    features = {
        "front": ImageFeature(),
        "back": ImageFeature(),
        "label": Value("int64"),
        "fine": fine,
        "coarse": coarse,
    }
    columns = {"front": pictures(2), "back": pictures(2)[::-1], "label": [7, 8], "fine": [1, 0], "coarse": [1, 0]}
    file = table(columns, features, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="front, back could be meant: give image_column"):
        load_image_data(file, "train")
    with pytest.raises(ValueError, match="fine, coarse could be meant: give label_column"):
        load_image_data(file, "train", image_column="back")
    with pytest.raises(ValueError, match="no column side, only front, back, label, fine, coarse"):
        load_image_data(file, "train", image_column="side", label_column="fine")
    for streaming in (False, True):
        data = load_image_data(file, "train", streaming=streaming, image_column="back", label_column="coarse")
        assert class_names_of(data) == ["insect", "mammal"]
        assert [(example["image"].getpixel((0, 0))[0], example["label"]) for example in data] == [(1, 1), (0, 0)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("metadata", [False, True])
@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_photos_of_phones_are_in_the_folder(kind: str, metadata: bool, streaming: bool, tmp_path: Path) -> None:
    """datasets' own reader of folders leaves out their endings without a word."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    names = {"HEIF": ["IMG_1.HEIC", "2.heif"], "AVIF": ["1.avif", "2.AVIF"]}[kind]
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for file in names:
            Image.new("RGB", (8, 6), (100 * label, 0, 0)).save(tmp_path / name / file, kind)
    if metadata:
        rows = [f"{label}/{file},{label}" for label in ("ant", "bee") for file in names]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    class_names = ["ant", "bee"] if metadata else None
    data = load_image_data(tmp_path, "train", streaming=streaming, class_names=class_names)
    seen = [(round(example["image"].getpixel((0, 0))[0], -1), example["label"]) for example in data]
    assert seen == [(0, 0)] * 2 + [(100, 1)] * 2


@pytest.mark.parametrize("streaming", [False, True])
def test_images_as_bare_bytes(digits: Path, tmp_path: Path, streaming: bool) -> None:
    """Parquet files that were not written by datasets know no type Image; naming the column is enough."""
    files = sorted((digits / "train" / "one").iterdir())
    columns = {"png": [file.read_bytes() for file in files], "label": [0, 1] * (LIMIT // 2)}
    features = {"png": Value("binary"), "label": ClassLabel(names=["a", "b"])}
    file = table(columns, features, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="none of the columns png, label fits: give image_column"):
        load_image_data(file, "train", streaming=streaming)
    data = load_image_data(file, "train", streaming=streaming, image_column="png")
    assert [example["image"].tobytes() for example in data] == [Image.open(file).tobytes() for file in files]


@pytest.mark.parametrize("streaming", [False, True])
def test_names_replace_names_without_moving_labels(tmp_path: Path, streaming: bool) -> None:
    folder = broken_folder(tmp_path / "data", {"sea_cow": 1, "ant": 2, "b": 3})

    def counts(**options: Any) -> dict[str, int]:
        data = load_image_data(folder, "train", streaming=streaming, **options)
        labels = [example["label"] for example in data.decode(False)] if streaming else data["label"][:]
        return Counter(class_names_of(data)[label] for label in labels)

    assert counts() == {"ant": 2, "b": 3, "sea cow": 1}
    assert counts(class_names={"b": "bumble bee"}) == {"ant": 2, "bumble bee": 3, "sea cow": 1}
    assert counts(class_names=["black ant", "bee", "manatee"]) == {"black ant": 2, "bee": 3, "manatee": 1}
    for names, message in [
        (["ant", "bee"], "lists 2 names for 3 classes"),
        (["sea_cow", "ant", "b"], r"gives \['sea_cow', 'ant', 'b'\] to other classes"),
        (["sea cow", "bee", "ant bear"], r"gives \['sea cow'\] to other classes"),
        (["ant", "bee", "ant"], "repeated"),
        ({"bee": "bumble bee"}, r"renames \['bee'\], which are not among"),
        ({"b": "ant"}, "repeated"),
        ("ant", "must be a list of strings"),
    ]:
        with pytest.raises(ValueError, match=message):
            counts(class_names=names)


def test_names_from_a_mac_are_composed(tmp_path: Path) -> None:
    mac, linux = "Cafe\u0301", "Caf\u00e9"
    for name in (mac, "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    assert class_names_of(load_image_data(tmp_path, "train")) == [linux, "dog"]
    for names in ({mac: "bar"}, {linux: "bar"}):
        assert class_names_of(load_image_data(tmp_path, "train", class_names=names)) == ["bar", "dog"]
    foreign = Dataset.from_dict(
        {"image": [], "label": []}, Features({"image": ImageFeature(), "label": ClassLabel(names=[mac, "dog"])})
    )
    assert class_names_of(foreign) == [linux, "dog"]
    for name in (mac, linux):
        assert class_names_of(select_classes(foreign, [name])) == [linux]
    assert ClassHalves((mac,), ("dog",)) == ClassHalves((linux,), ("dog",))


def test_names_that_read_alike_are_refused(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "data", {"sea_cow": 1, "sea-cow": 1})
    with pytest.raises(ValueError, match="read alike"):
        load_image_data(folder, "train")
    named = load_image_data(folder, "train", class_names={"sea-cow": "manatee"})
    assert class_names_of(named) == ["manatee", "sea cow"]


@pytest.fixture
def undecodable(tmp_path: Path) -> Dataset:
    """Three classes of 10, 20 and 30 examples whose images nobody can decode."""
    return load_image_data(broken_folder(tmp_path / "data", {"zebra": 10, "ant": 20, "gnu": 30}), "train")


def paths(dataset: Dataset) -> list[str]:
    return [image["path"] for image in dataset.cast_column("image", ImageFeature(decode=False))["image"]]


def test_few_shots_without_decoding(undecodable: Dataset) -> None:
    shots = few_shot(undecodable, 4, seed=1)
    assert Counter(shots["label"][:]) == {0: 4, 1: 4, 2: 4}
    assert paths(shots) == paths(few_shot(undecodable, 4, seed=1))
    assert paths(shots) != paths(few_shot(undecodable, 4, seed=2))
    assert {Path(path).parent.name for path in paths(shots)} == {"ant", "gnu", "zebra"}
    with pytest.raises(ShotsError, match=r"more examples than these classes have: \{'zebra': 10\}"):
        few_shot(undecodable, 11, seed=0)
    with pytest.raises(ShotsError, match="shots=0"):
        few_shot(undecodable, 0, seed=0)
    some = few_shot(undecodable, 11, seed=0, fewer=True)
    assert Counter(some["label"][:]) == {0: 11, 1: 11, 2: 10}
    few = few_shot(undecodable, 10, seed=0)
    assert paths(few_shot(undecodable, 10, seed=0, fewer=True)) == paths(few)
    without_zebras = undecodable.select(np.flatnonzero(np.array(undecodable["label"][:]) != 2))
    with pytest.raises(ShotsError, match=r"\{'zebra': 0\}"):
        few_shot(without_zebras, 1, seed=0)
    with pytest.raises(ShotsError, match=r"\{'zebra': 0\}. Leave these classes out with select_classes\.$"):
        few_shot(without_zebras, 1, seed=0, fewer=True)
    with pytest.raises(TypeError, match="streaming=False"):
        few_shot(undecodable.to_iterable_dataset(), 1, seed=0)


def test_splits_are_stratified_disjoint_and_repeatable(undecodable: Dataset) -> None:
    parts = split_data(undecodable, validation=0.2, test=0.3, seed=5)
    assert {name: Counter(part["label"][:]) for name, part in parts.items()} == {
        "train": {0: 10, 1: 15, 2: 5},
        "validation": {0: 4, 1: 6, 2: 2},
        "test": {0: 6, 1: 9, 2: 3},
    }
    found = [path for part in parts.values() for path in paths(part)]
    assert sorted(found) == sorted(paths(undecodable))
    again = split_data(undecodable, validation=0.2, test=0.3, seed=5)
    assert all(paths(again[name]) == paths(part) for name, part in parts.items())
    assert paths(split_data(undecodable, test=0.3, seed=6)["test"]) != paths(parts["test"])
    assert set(split_data(undecodable, test=0.5, seed=0)) == {"train", "test"}


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.0), (0.5, 0.5), (-0.1, 0.5), (0.0, 1.5)])
def test_shares_must_leave_something(undecodable: Dataset, validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares with a sum between 0 and 1"):
        split_data(undecodable, validation=validation, test=test, seed=0)


def test_a_class_too_small_to_split(tmp_path: Path) -> None:
    data = load_image_data(broken_folder(tmp_path / "data", {"ant": 9, "bee": 1}), "train")
    with pytest.raises(ValueError, match=r"train, test needs .* fewer images than that: \{'bee': 1\}"):
        split_data(data, test=0.5, seed=0)
    with pytest.raises(ValueError, match=r"test=0.9 of 10 images leave less than one .* Use at most 0.8 in all"):
        split_data(load_image_data(broken_folder(tmp_path / "more", {"ant": 8, "bee": 2}), "train"), test=0.9, seed=0)
    with pytest.raises(ValueError, match=r"test=0.1 of 10 images is 1, less than one .* 2 classes. Use at least 0.2"):
        split_data(load_image_data(tmp_path / "more", "train"), test=0.1, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_every_class(tmp_path: Path, seed: int) -> None:
    """Also where a class has less than half an image in a share, or would be all in it."""
    data = load_image_data(broken_folder(tmp_path / "data", {"ant": 40, "bee": 3}), "train")
    for shares in ({"test": 0.05}, {"test": 0.9}, {"validation": 0.5, "test": 0.45}):
        parts = split_data(data, **shares, seed=seed)
        assert all(set(part["label"][:]) == {0, 1} for part in parts.values())
        assert sorted(path for part in parts.values() for path in paths(part)) == sorted(paths(data))


def test_classes_are_selected_by_name(undecodable: Dataset) -> None:
    """The halves are in the order they were given, whatever the order of the folders."""
    order = halves(["zebra", "gnu", "ant"])
    base = select_classes(undecodable, order.base)
    assert class_names_of(base) == ["zebra", "gnu"]
    assert base.features["image"] == RGBImage()
    named = [(Path(path).parent.name, label) for path, label in zip(paths(base), base["label"][:], strict=True)]
    assert Counter(named) == {("zebra", 0): 10, ("gnu", 1): 30}
    new = select_classes(undecodable, order.new)
    assert (class_names_of(new), len(new)) == (["ant"], 20)
    drawn = select_classes(few_shot(undecodable, 3, seed=0), ["zebra", "ant"])
    assert Counter(Path(path).parent.name for path in paths(drawn)) == {"zebra": 3, "ant": 3}
    assert drawn["label"][:] == [["zebra", "ant"].index(Path(path).parent.name) for path in paths(drawn)]
    for names, message in [
        (["zebra", "emu"], r"unknown classes \['emu'\]"),
        (["ant", "ant"], "once"),
        ([], "one class"),
    ]:
        with pytest.raises(ValueError, match=message):
            select_classes(undecodable, names)


def test_classes_of_a_stream(digits: Path, parquet: Path) -> None:
    names = ["seven", "one", "nine"]
    expected = contents(select_classes(load_image_data(digits, "test"), names))
    assert len(expected) == 3 * LIMIT
    for source in (digits, parquet):
        stream = select_classes(load_image_data(source, "test", streaming=True), names)
        assert class_names_of(stream) == names
        assert contents(stream) == expected


def test_data_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="need a column 'label' of type ClassLabel"):
        class_names_of(Dataset.from_dict({"label": [1]}))


def test_a_missing_folder_is_named_at_once(tmp_path: Path) -> None:
    """A bare name could be a data set of the Hub: it is asked once, where load_dataset would try again for long."""
    program = "from anprompt_peft.data import load_image_data; load_image_data('photos')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Error: There is no folder photos, and photos could not be downloaded from the Hub: " in done.stderr
    assert "retry" not in done.stderr.lower()


def test_shots_above_what_a_class_has_offer_the_most(digits: Path) -> None:
    images = load_image_data(digits, "train")
    with pytest.raises(ShotsError, match=r"these classes have: \{'eight': 4, .*\}\. Use at most 4, or"):
        few_shot(images, LIMIT + 1, seed=0)
    with pytest.raises(ShotsError, match=r"class 1 has\. Use at most 2\."):
        sample_shots([0, 0, 0, 1, 1], 3, seed=0)
