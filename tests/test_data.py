"""Loading labelled images from folders and parquet files, streamed or not; draws, splits and classes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
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
from handwriting import CLASS_NAMES, load_split
from pictures import assert_refused, counts, labels, paths, pictures, table, tree

LIMIT = 3  # images of each digit and split
MAC, LINUX = "Cafe\u0301", "Caf\u00e9"

both_ways = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(scope="module")
def parquet(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as parquet files, two for train and one for test, with the images in them."""
    folder = tmp_path_factory.mktemp("data") / "parquet"
    folder.mkdir()
    parts = load_image_data(digits)
    for number in range(2):
        parts["train"].shard(2, number).to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    parts["test"].to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def broken_folder(folder: Path, classes: dict[str, int]) -> Path:
    """An image folder in which no image can be decoded: whoever touches one fails."""
    return tree(folder, *(f"{name}/{number}.jpg" for name, count in classes.items() for number in range(count)))


def load_broken(folder: Path, classes: dict[str, int]) -> Dataset:
    return load_image_data(broken_folder(folder, classes), "train")


def contents(dataset: Any) -> list[tuple[bytes, str]]:
    """Pixels and class name of every example, in an order of their own."""
    names = class_names_of(dataset)
    return sorted((example["image"].tobytes(), names[example["label"]]) for example in dataset)


def in_order(dataset: Any) -> list[tuple[bytes, int]]:
    return [(example["image"].tobytes(), example["label"]) for example in dataset]


# --- sources


def test_a_folder_gives_splits_names_and_rgb_images(digits: Path) -> None:
    data = load_image_data(digits)
    assert set(data) == set(load_image_data(digits, streaming=True)) == {"train", "test"}
    assert data["train"].column_names == ["image", "label"]
    assert class_names_of(data["train"]) == sorted(CLASS_NAMES)
    assert data["train"].features["image"] == RGBImage()
    assert isinstance(data["train"].features["image"], ImageFeature)
    expected: list[tuple[bytes, str]] = []
    for image, label in zip(*load_split("test"), strict=True):
        if [name for _, name in expected].count(CLASS_NAMES[label]) < LIMIT:
            expected.append((image.tobytes(), CLASS_NAMES[label]))
    assert contents(data["test"]) == sorted(expected)


@both_ways
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


def test_parts_of_folders_are_those_of_datasets(digits: Path) -> None:
    """Order, labels and splits are those of `load_dataset`, so that the same shots are drawn."""
    folder = {"train": f"{digits}/train/**", "test": f"{digits}/test/**"}
    for split in ("train", "train[3:9]", "test[-25%:]", "train[:10%]+test", "all"):
        expected = datasets.load_dataset("imagefolder", data_files=folder, split=split)
        pairs = in_order(expected.cast_column("image", RGBImage()))
        assert in_order(load_image_data(str(digits), split)) == pairs
        assert in_order(load_image_data(digits, split, streaming=True)) == pairs
    assert_refused('Unknown split "dev"', load_image_data, digits, "dev")


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


def test_a_missing_folder_is_named_at_once(tmp_path: Path) -> None:
    """A bare name could be a data set of the Hub: it is asked once, where load_dataset would try again for long."""
    program = "from anprompt_peft.data import load_image_data; load_image_data('photos')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Error: There is no folder photos, and photos could not be downloaded from the Hub: " in done.stderr
    assert "retry" not in done.stderr.lower()


def test_options_of_the_hub_are_refused_elsewhere(digits: Path, parquet: Path) -> None:
    for source in (digits, f"{parquet}/*.parquet"):
        assert_refused("name and revision cannot be given", load_image_data, source, name="plain", revision="main")
    assert_refused("revision cannot be given", load_image_data, parquet, revision="main")


# --- folders


def read(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, dict[str, int]], str]:
    """The number of images of each class of each split of a folder, and what is told about it."""
    caplog.clear()
    with caplog.at_level("INFO", "anprompt_peft.data.loading"):
        found = {split: counts(part) for split, part in load_image_data(folder).items()}
    return found, "\n".join(record.getMessage() for record in caplog.records).replace(f"{folder}", "FOLDER")


CAT_DOG = {"cat": 1, "dog": 1}
OUTSIDE = "FOLDER: left out, as they are outside the folders of splits and classes: "


@pytest.mark.parametrize(
    ("files", "expected", "told"),
    [
        (  # classes that are named like splits
            "train_station/1.png test_tube/1.png test/1.png val-thorens/1.png",
            {"train": {"train station": 1, "test tube": 1, "test": 1, "val thorens": 1}},
            "",
        ),
        (
            "train/train_station/1.png train/test_tube/1.png val/test_tube/1.png",
            {"train": {"train station": 1, "test tube": 1}, "validation": {"test tube": 1}},
            "",
        ),
        ("train/cat/1.png train/dog/1.png test/cat/1.png", {"train": CAT_DOG, "test": {"cat": 1}}, ""),
        (
            "train/cat/1.png train/dog/1.png test/cat/1.png owl/1.png owl/2.png extra/ox/1.png 0.png train/2.png "
            "validation/1.png docs/a.txt",
            {"train": CAT_DOG, "test": {"cat": 1}},
            "Left out of FOLDER: .txt 1.\n"
            f"{OUTSIDE}./ (1 image), extra/ (1 image), owl/ (2 images), validation/ (1 image), train/ (1 image).",
        ),
        ("cat/1.png dog/1.png 0.png 1.png", {"train": CAT_DOG}, f"{OUTSIDE}./ (2 images)."),
        (
            "cat/1.png dog/1.png owl/1.heiq owl/2.heiq owl/3.txt ox\n/ yak/.1.png",
            {"train": CAT_DOG},
            "Left out of FOLDER: .heiq 2, .txt 1; hidden 1 (.1.png).\n"
            "FOLDER: left out, as they hold no image that is read: owl/ (.heiq 2, .txt 1), ox\\n/, yak/.",
        ),
        (
            "train/cat/1.png train/dog/1.png train/ox/ test/cat/ docs/a.txt",
            {"train": CAT_DOG},
            "Left out of FOLDER: .txt 1.\nFOLDER: left out, as they hold no image that is read: test/, train/ox/.",
        ),
        (
            "cat/1.png cat/in/2.png cat/in/a/3.png dog/1.png ox/out/1.png ox/out/2.png",
            {"train": {"cat": 3, "dog": 1, "ox": 2}},
            "FOLDER: counted for the class above: cat/in/ (2 images), ox/out/ (2 images).",
        ),
        (
            "photos/cat/1.png photos/dog/1.png __MACOSX/photos/cat/._1.png",
            {"train": CAT_DOG},
            "Left out of FOLDER: hidden 1 (__MACOSX).\nFOLDER: read is the only folder in it: photos/.",
        ),
        (
            "x/y/Train/cat/1.png x/y/Train/dog/1.png x/y/Test/cat/1.png",
            {"train": CAT_DOG, "test": {"cat": 1}},
            "FOLDER: read is the only folder in it: x/y/.",
        ),
        (
            f"train/{LINUX}/1.png train/dog/1.png test/{MAC}/1.png",
            {"train": {LINUX: 1, "dog": 1}, "test": {LINUX: 1}},
            "",
        ),
        (
            f"{LINUX}/1.png {MAC}/1.png dog/1.png Dog/1.png",
            {"train": {LINUX: 2, "dog": 1, "Dog": 1}},
            f"FOLDER: one class, as the names differ in their Unicode form only: {MAC}/ and {LINUX}/.\n"
            "FOLDER: different classes, though CLIP reads their names alike: Dog/ and dog/.",
        ),
        (  # what macOS, Jupyter, Synology and Windows leave beside pictures
            "cat/1.png dog/1.JPG cat/a.psd dog/b.PSD notes.txt LICENSE __MACOSX/cat/._1.png cat/._1.png @eaDir/1.png "
            "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg .ipynb_checkpoints/1.png cat/Thumbs.db desktop.ini .DS_Store "
            "#recycle/1.png",
            {"train": CAT_DOG},
            "Left out of FOLDER: .psd 2, no ending 1, .txt 1; "
            "hidden 9 (#recycle, .DS_Store, ._1.png, .ipynb_checkpoints, @eaDir, 3 more).",
        ),
    ],
)
def test_splits_and_classes_of_a_folder(
    files: str, expected: dict[str, dict[str, int]], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, *files.split(" "))
    assert read(tmp_path, caplog) == (expected, told)


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "evaluation"), ("Training", "Eval"), ("train", "Val")],
)
def test_spellings_of_splits(names: tuple[str, str], tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{kind}/1.png" for name in names for kind in CAT_DOG))
    found = {split: counts(part) for split, part in load_image_data(tmp_path).items()}
    assert found == {"train": CAT_DOG, "validation" if names[1] == "Val" else "test": CAT_DOG}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ("train/cat/1.png Train/cat/1.png", "Train/ and train/ are both the split"),
        ("train/cat/1.png training/cat/1.png", "train/ and training/ are both the split"),
        ("test/cat/1.png eval/cat/1.png", "eval/ and test/ are both the split"),
        ("val/cat/1.png valid/cat/1.png", "val/ and valid/ are both the split"),
        ("only/1.png only/2.png", r"images of one class only, 'only'.*two or more sub-folders"),
        ("0.png 1.png", "no folders of classes"),
        ("train/1.png test/1.png", "no folders of classes"),
        ("animals/cat/1.png animals/dog/1.png plants/rose/1.png", "tell its classes: are they animals, plants, or"),
        ("cat/train/1.png cat/test/1.png dog/train/1.png", "are they cat, dog, or the folders in them, test, train"),
        ("training_set/cat/1.png training_set/dog/1.png test_set/cat/1.png", "are they test_set, training_set, or "),
        ("train/animals/cat/1.png train/plants/rose/1.png", "are they animals, plants, or the folders in them"),
        ("cat/1.png dog/1.png dog/" + os.fsdecode(b"\xff.png"), r"not UTF-8.*dog/\\udcff.png"),
    ],
)
def test_folders_whose_splits_or_classes_are_not_clear_are_refused(files: str, wanted: str, tmp_path: Path) -> None:
    if not files.isprintable() and sys.platform != "linux":
        pytest.skip("other systems allow no such names")
    assert_refused(wanted, load_image_data, tree(tmp_path, *files.split()))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither images nor parquet files\. Left out of .*: \.txt 1"):
        load_image_data(tree(tmp_path, "notes.txt"))


def test_linked_folders_are_read_without_end_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "real", "cat/1.png", "dog/1.png")
    folder = tree(tmp_path / "photos", "train/")
    for name in ("cat", "dog"):
        (folder / "train" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "all").symlink_to(tmp_path)
    (folder / "test").symlink_to("train")
    found, told = read(folder, caplog)
    assert {split: set(classes) for split, classes in found.items()} == {"train": {*CAT_DOG}, "test": {*CAT_DOG}}
    assert found["train"]["dog"] == 1
    assert "linked folders not followed" in told


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "Testing")])
def test_a_folder_with_metadata(splits: tuple[str, str], tmp_path: Path) -> None:
    """Labels in a table beside the images, as datasets reads them; odd characters in its path are only letters."""
    folder = tmp_path / "wh[a]t * name?"
    for split, kinds in zip(splits, [["sea_cow", "ant"], ["ant"]], strict=True):
        (folder / split).mkdir(parents=True)
        for number, picture in enumerate(pictures(len(kinds))):
            picture.save(folder / split / f"{number}.png")
        rows = [f"{number}.png,{kind}" for number, kind in enumerate(kinds)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,kind", *rows]))
    data = load_image_data(folder)
    assert class_names_of(data["test"]) == ["ant", "sea cow"]
    assert {split: labels(part) for split, part in data.items()} == {"train": [1, 0], "test": [0]}


@both_ways
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


# --- columns


def test_strings_become_classes_alike_in_every_split(tmp_path: Path) -> None:
    """The names come from all splits, so that a split without some of them numbers the others as training did."""
    features = {"photo": ImageFeature(), "kind": Value("string")}
    table(tmp_path / "train.parquet", {"photo": pictures(3), "kind": ["sea_cow", "ant", "bee"]}, features)
    table(tmp_path / "test.parquet", {"photo": pictures(1), "kind": ["sea_cow"]}, features)
    for split, names, expected in [
        ("test", None, (["ant", "bee", "sea cow"], [2])),
        ("train", ["sea_cow", "bee", "ant"], (["sea_cow", "bee", "ant"], [0, 2, 1])),
        ("train", {"sea_cow": "manatee"}, (["ant", "bee", "manatee"], [2, 0, 1])),
    ]:
        data = load_image_data(tmp_path, split, class_names=names)
        assert (class_names_of(data), labels(data)) == expected


def test_streamed_strings_need_their_names(tmp_path: Path) -> None:
    columns = {"photo": pictures(3), "kind": ["sea_cow", "ant", "bee"]}
    file = table(tmp_path / "train.parquet", columns, {"photo": ImageFeature(), "kind": Value("string")})
    assert_refused(r"strings \(kind\) need class_names", load_image_data, file, "train", streaming=True)
    stream = load_image_data(file, "train", streaming=True, class_names=["sea_cow", "ant", "bee"])
    assert [example["label"] for example in stream] == [0, 1, 2]
    short = load_image_data(file, "train", streaming=True, class_names=["sea_cow", "ant"])
    assert_refused(r"labels \['bee'\] are none of", list, short)


def test_integers_need_their_names(tmp_path: Path) -> None:
    columns = {"image": pictures(3), "label": [0, 2, 1]}
    file = table(tmp_path / "train.parquet", columns, {"image": ImageFeature(), "label": Value("int64")})
    for streaming in (False, True):
        message = "need class_names, a list with the name of every label"
        assert_refused(message, load_image_data, file, "train", streaming=streaming)
    assert_refused("need class_names, a list", load_image_data, file, "train", class_names={"0": "ant"})
    message = r"labels \[2\] are none of the 2 classes"
    assert_refused(message, load_image_data, file, "train", class_names=["ant", "bee"])
    data = load_image_data(file, "train", class_names=["ant", "bee", "cat"])
    assert (class_names_of(data), labels(data)) == (["ant", "bee", "cat"], [0, 2, 1])


def test_missing_labels_are_not_guessed(tmp_path: Path) -> None:
    columns, features = {"image": pictures(3), "label": ["ant", None, "bee"]}, {"image": ImageFeature()}
    file = table(tmp_path / "train.parquet", columns, {**features, "label": Value("string")})
    assert_refused(r"labels \[None\] are none of", load_image_data, file, "train")
    unlabelled = {**features, "label": ClassLabel(names=["ant", "bee"])}
    data = load_image_data(table(tmp_path / "t.parquet", {**columns, "label": [-1, 1, 1]}, unlabelled), "train")
    assert labels(data) == [-1, 1, 1]
    assert_refused("1 of 3 examples have no label from 0 to 1", few_shot, data, 1, seed=0)


def test_columns_are_found_by_type_and_ambiguity_is_named(tmp_path: Path) -> None:
    kinds = {"fine": ClassLabel(names=["ant", "cat"]), "coarse": ClassLabel(names=["insect", "mammal"])}
    features = {"front": ImageFeature(), "back": ImageFeature(), "label": Value("int64"), **kinds}
    columns = {"front": pictures(2), "back": pictures(2)[::-1], "label": [7, 8], "fine": [1, 0], "coarse": [1, 0]}
    file = table(tmp_path / "train.parquet", columns, features)
    for given, message in [
        ({}, "front, back could be meant: give image_column"),
        ({"image_column": "back"}, "fine, coarse could be meant: give label_column"),
        ({"image_column": "side", "label_column": "fine"}, "no column side, only front, back, label, fine, coarse"),
    ]:
        assert_refused(message, load_image_data, file, "train", **given)
    for streaming in (False, True):
        data = load_image_data(file, "train", streaming=streaming, image_column="back", label_column="coarse")
        assert class_names_of(data) == ["insect", "mammal"]
        assert [(example["image"].getpixel((0, 0))[0], example["label"]) for example in data] == [(1, 1), (0, 0)]


@both_ways
def test_images_as_bare_bytes(digits: Path, tmp_path: Path, streaming: bool) -> None:
    """Parquet files that were not written by datasets know no type Image; naming the column is enough."""
    files = sorted((digits / "train" / "one").iterdir())
    columns = {"png": [file.read_bytes() for file in files], "label": [0, 1, 0]}
    features = {"png": Value("binary"), "label": ClassLabel(names=["a", "b"])}
    file = table(tmp_path / "train.parquet", columns, features)
    message = "none of the columns png, label fits: give image_column"
    assert_refused(message, load_image_data, file, "train", streaming=streaming)
    data = load_image_data(file, "train", streaming=streaming, image_column="png")
    assert [example["image"].tobytes() for example in data] == [Image.open(file).tobytes() for file in files]


# --- names


@both_ways
def test_names_replace_names_without_moving_labels(tmp_path: Path, streaming: bool) -> None:
    folder = broken_folder(tmp_path / "data", {"sea_cow": 1, "ant": 2, "b": 3})

    def named(class_names: Any = None) -> dict[str, int]:
        data = load_image_data(folder, "train", streaming=streaming, class_names=class_names)
        found = [example["label"] for example in data.decode(False)] if streaming else labels(data)
        return Counter(class_names_of(data)[label] for label in found)

    assert named() == {"ant": 2, "b": 3, "sea cow": 1}
    assert named({"b": "bumble bee"}) == {"ant": 2, "bumble bee": 3, "sea cow": 1}
    assert named(["black ant", "bee", "manatee"]) == {"black ant": 2, "bee": 3, "manatee": 1}
    for names, message in [
        (["ant", "bee"], "lists 2 names for 3 classes"),
        (["sea_cow", "ant", "b"], r"gives \['sea_cow', 'ant', 'b'\] to other classes"),
        (["sea cow", "bee", "ant bear"], r"gives \['sea cow'\] to other classes"),
        (["ant", "bee", "ant"], "repeated"),
        ({"bee": "bumble bee"}, r"renames \['bee'\], which are not among"),
        ({"b": "ant"}, "repeated"),
        ("ant", "must be a list of strings"),
    ]:
        assert_refused(message, named, names)


def test_names_from_a_mac_are_composed(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path, {MAC: 1, "dog": 1})
    assert class_names_of(load_image_data(folder, "train")) == [LINUX, "dog"]
    for names in ({MAC: "bar"}, {LINUX: "bar"}):
        assert class_names_of(load_image_data(folder, "train", class_names=names)) == ["bar", "dog"]
    foreign = Dataset.from_dict(
        {"image": [], "label": []}, Features({"image": ImageFeature(), "label": ClassLabel(names=[MAC, "dog"])})
    )
    assert class_names_of(foreign) == [LINUX, "dog"]
    for name in (MAC, LINUX):
        assert class_names_of(select_classes(foreign, [name])) == [LINUX]
    assert ClassHalves((MAC,), ("dog",)) == ClassHalves((LINUX,), ("dog",))


def test_names_that_read_alike_are_refused(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "data", {"sea_cow": 1, "sea-cow": 1})
    assert_refused("read alike", load_image_data, folder, "train")
    named = load_image_data(folder, "train", class_names={"sea-cow": "manatee"})
    assert class_names_of(named) == ["manatee", "sea cow"]


# --- draws, splits and classes


@pytest.fixture
def undecodable(tmp_path: Path) -> Dataset:
    """Three classes of 10, 20 and 30 examples whose images nobody can decode."""
    return load_broken(tmp_path / "data", {"zebra": 10, "ant": 20, "gnu": 30})


def test_few_shots_without_decoding(undecodable: Dataset) -> None:
    shots = few_shot(undecodable, 4, seed=1)
    assert counts(shots) == {"ant": 4, "gnu": 4, "zebra": 4}
    assert {Path(path).parent.name for path in paths(shots)} == {"ant", "gnu", "zebra"}
    assert paths(shots) == paths(few_shot(undecodable, 4, seed=1))
    assert paths(shots) != paths(few_shot(undecodable, 4, seed=2))
    assert counts(few_shot(undecodable, 11, seed=0, fewer=True)) == {"ant": 11, "gnu": 11, "zebra": 10}
    assert paths(few_shot(undecodable, 10, seed=0, fewer=True)) == paths(few_shot(undecodable, 10, seed=0))


def test_shots_that_cannot_be_drawn_are_refused(undecodable: Dataset) -> None:
    no_zebras = undecodable.select(np.flatnonzero(np.array(labels(undecodable)) != 2))
    leave_out = r"\{'zebra': 0\}. Leave these classes out with select_classes"
    for data, shots, fewer, message in [
        (undecodable, 11, False, r"more examples than these classes have: \{'zebra': 10\}\. Use at most 10, or"),
        (undecodable, 0, False, "shots=0"),
        (no_zebras, 1, False, leave_out),
        (no_zebras, 1, True, leave_out + r"\.$"),
    ]:
        with pytest.raises(ShotsError, match=message):
            few_shot(data, shots, seed=0, fewer=fewer)
    with pytest.raises(ShotsError, match=r"class 1 has\. Use at most 2\."):
        sample_shots([0, 0, 0, 1, 1], 3, seed=0)
    with pytest.raises(TypeError, match="streaming=False"):
        few_shot(undecodable.to_iterable_dataset(), 1, seed=0)


def test_splits_are_stratified_disjoint_and_repeatable(undecodable: Dataset) -> None:
    parts = split_data(undecodable, validation=0.2, test=0.3, seed=5)
    assert {name: counts(part) for name, part in parts.items()} == {
        "train": {"ant": 10, "gnu": 15, "zebra": 5},
        "validation": {"ant": 4, "gnu": 6, "zebra": 2},
        "test": {"ant": 6, "gnu": 9, "zebra": 3},
    }
    assert sorted(path for part in parts.values() for path in paths(part)) == sorted(paths(undecodable))
    again = split_data(undecodable, validation=0.2, test=0.3, seed=5)
    assert all(paths(again[name]) == paths(part) for name, part in parts.items())
    assert paths(split_data(undecodable, test=0.3, seed=6)["test"]) != paths(parts["test"])
    assert set(split_data(undecodable, test=0.5, seed=0)) == {"train", "test"}


@pytest.mark.parametrize(
    ("classes", "shares", "message"),
    [
        ({"ant": 8, "bee": 8}, {}, "shares with a sum between 0 and 1"),
        ({"ant": 8, "bee": 8}, {"validation": 0.5, "test": 0.5}, "shares with a sum between 0 and 1"),
        ({"ant": 8, "bee": 8}, {"validation": -0.1, "test": 0.5}, "shares with a sum between 0 and 1"),
        ({"ant": 8, "bee": 8}, {"test": 1.5}, "shares with a sum between 0 and 1"),
        ({"ant": 9, "bee": 1}, {"test": 0.5}, r"train, test needs .* fewer images than that: \{'bee': 1\}"),
        ({"ant": 8, "bee": 2}, {"test": 0.9}, "test=0.9 of 10 images leave less than one .* Use at most 0.8 in all"),
        (
            {"ant": 8, "bee": 2},
            {"test": 0.1},
            "test=0.1 of 10 images is 1, less than one .* 2 classes. Use at least 0.2",
        ),
    ],
)
def test_shares_that_do_not_fit_are_refused(
    classes: dict[str, int], shares: dict[str, float], message: str, tmp_path: Path
) -> None:
    assert_refused(message, split_data, load_broken(tmp_path, classes), **shares, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_every_class(tmp_path: Path, seed: int) -> None:
    """Also where a class has less than half an image in a share, or would be all in it."""
    data = load_broken(tmp_path, {"ant": 40, "bee": 3})
    for shares in ({"test": 0.05}, {"test": 0.9}, {"validation": 0.5, "test": 0.45}):
        parts = split_data(data, **shares, seed=seed)
        assert all(set(labels(part)) == {0, 1} for part in parts.values())
        assert sorted(path for part in parts.values() for path in paths(part)) == sorted(paths(data))


def test_classes_are_selected_by_name(undecodable: Dataset) -> None:
    """The halves are in the order they were given, whatever the order of the folders."""
    order = halves(["zebra", "gnu", "ant"])
    base = select_classes(undecodable, order.base)
    assert class_names_of(base) == ["zebra", "gnu"]
    assert base.features["image"] == RGBImage()
    named = [(Path(path).parent.name, label) for path, label in zip(paths(base), labels(base), strict=True)]
    assert Counter(named) == {("zebra", 0): 10, ("gnu", 1): 30}
    assert counts(select_classes(undecodable, order.new)) == {"ant": 20}
    drawn = select_classes(few_shot(undecodable, 3, seed=0), ["zebra", "ant"])
    assert Counter(Path(path).parent.name for path in paths(drawn)) == {"zebra": 3, "ant": 3}
    assert labels(drawn) == [["zebra", "ant"].index(Path(path).parent.name) for path in paths(drawn)]
    for names, message in {
        ("zebra", "emu"): r"unknown classes \['emu'\]",
        ("ant", "ant"): "once",
        (): "one class",
    }.items():
        assert_refused(message, select_classes, undecodable, names)


def test_classes_of_a_stream(digits: Path, parquet: Path) -> None:
    names = ["seven", "one", "nine"]
    expected = contents(select_classes(load_image_data(digits, "test"), names))
    assert len(expected) == 3 * LIMIT
    for source in (digits, parquet):
        stream = select_classes(load_image_data(source, "test", streaming=True), names)
        assert class_names_of(stream) == names
        assert contents(stream) == expected


def test_data_without_classes_are_refused() -> None:
    message = "need a column 'label' of type ClassLabel"
    assert_refused(message, class_names_of, Dataset.from_dict({"label": [1]}))
