"""The field's data sets: miniature trees in every layout, tables with every schema of the Hub, and own data.

Images of the trees are one word of text, because reading must not open them; those of a check are images.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from anprompt_cli import main
from anprompt_peft.data import RGBImage, ShotsError, class_names_of
from anprompt_peft.evaluation.benchmarks import (
    BenchmarkData,
    CatalogEntry,
    Shots,
    catalog,
    draw_shots,
    find_entry,
    load_benchmark_data,
    read_entry,
)
from anprompt_peft.evaluation.benchmarks.checks import Status, check_data_set
from anprompt_peft.evaluation.benchmarks.sources import read_hub

ALL = tuple(catalog())
JSON_SETS = tuple(name for name, entry in catalog().items() if entry.layout == "split-json")
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
WNIDS = {"n01": "tench", "n02": "missile", "n03": "great white shark", "n04": "missile", "n05": "crane bird"}

Write = Callable[[Path], None]


def text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no image")


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (len(path.name), 50, 60)).save(path, format="PNG")


def paths_of(dataset: Dataset) -> list[str]:
    raw = dataset.with_format(None).cast_column("image", RGBImage(decode=False))
    return [example["image"]["path"] for example in raw]


def labels_of(dataset: Dataset) -> list[int]:
    return list(dataset.with_format(None).select_columns("label")[:]["label"])


def entry_of(name: str) -> CatalogEntry:
    return catalog()[name]


def make_tree(name: str, root: Path, write: Write = text) -> None:
    """A miniature of a data set, in its own layout."""
    entry = entry_of(name)
    {
        "split-json": make_split_json,
        "aircraft": make_aircraft,
        "imagenet": make_imagenet,
        "wnid-folders": make_wnid_folders,
        "numbered-folders": make_numbered_folders,
    }[str(entry.layout)](entry, root / entry.folder, write)


ROWS = [("c/1.jpg", 7, "seven_up"), ("a/1.jpg", 2, "two"), ("c/2.jpg", 7, "seven_up"), ("b/1.jpg", 9, "nine")]


def make_split_json(entry: CatalogEntry, folder: Path, write: Write) -> None:
    splits = {
        "train": ROWS,
        "val": [("b/2.jpg", 9, "nine"), ("a/2.jpg", 2, "two")],
        "test": [("c/3.jpg", 7, "seven_up"), ("a/3.jpg", 2, "two")],
    }
    for rows in splits.values():
        for path, _, _ in rows:
            write(folder / entry.images / path)
    (folder / str(entry.split)).write_text(json.dumps(splits))


def make_aircraft(entry: CatalogEntry, folder: Path, write: Write) -> None:
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("A300\nBoeing 717\n707-320\n")
    for split, lines in {"train": ("11 707-320", "12 A300"), "val": ("13 A300",), "test": ("14 Boeing 717",)}.items():
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write(folder / "images" / f"{line.split()[0]}.jpg")


def write_class_names(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))


def make_imagenet(entry: CatalogEntry, folder: Path, write: Write) -> None:
    write_class_names(folder)
    for wnid in reversed(WNIDS):
        for number in (2, 1):
            write(folder / "images" / "train" / wnid / f"{wnid}_{number}.JPEG")
        write(folder / "images" / "val" / wnid / f"{wnid}_val.JPEG")


def make_wnid_folders(entry: CatalogEntry, folder: Path, write: Write) -> None:
    write_class_names(folder)
    wnids = WNIDS if entry.name == "imagenet_sketch" else ("n05", "n02", "n03")
    for wnid in wnids:
        write(folder / entry.images / wnid / "1.jpg")
    (folder / entry.images / "README.txt").write_text("about")


def make_numbered_folders(entry: CatalogEntry, folder: Path, write: Write) -> None:
    folder.mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"n{number:02} class {number}\n" for number in range(12)))
    for number in range(12):
        write(folder / entry.images / str(number) / f"{number}.jpeg")


# --- the catalog


def test_the_catalog_has_the_published_data_sets_in_their_order() -> None:
    assert ALL == (
        "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
        "sun397", "dtd", "eurosat", "ucf101", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r",
    )  # fmt: skip
    assert [entry_of(name).classes for name in ALL] == [
        1000, 100, 37, 196, 102, 101, 100, 397, 47, 10, 101, 1000, 1000, 200, 200,
    ]  # fmt: skip
    assert [list(entry_of(name).counts.values()) for name in ALL] == [
        [1_281_167, 50_000], [4128, 1649, 2465], [2944, 736, 3669], [6509, 1635, 8041], [4093, 1633, 2463],
        [50_500, 20_200, 30_300], [3334, 3333, 3333], [15_880, 3970, 19_850], [2820, 1128, 1692], [13_500, 5400, 8100],
        [7639, 1898, 3783], [10_000], [50_889], [7500], [30_000],
    ]  # fmt: skip
    assert [name for name in ALL if entry_of(name).ensemble] == [ALL[0], *ALL[11:]]
    assert {len(set(entry_of(name).ensemble)) for name in (ALL[0], *ALL[11:])} == {7}
    assert len({tuple(entry_of(name).ensemble) for name in (ALL[0], *ALL[11:])}) == 1


def test_the_templates_are_coops() -> None:
    others = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "food101": "a photo of {}, a type of food.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "ucf101": "a photo of a person doing {}.",
    }
    for name in ALL:
        assert entry_of(name).templates == [others.get(name, "a photo of a {}.")], name


@pytest.mark.parametrize("name", ALL)
def test_an_entry_can_be_printed_and_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(entry_of(name).to_json())
    assert read_entry(path) == entry_of(name)


@pytest.mark.parametrize("spelling", ["oxford_pets", "OxfordPets", "oxford-pets"])
def test_names_are_found_in_any_case_and_with_hyphens(spelling: str) -> None:
    found = find_entry(spelling)
    assert found is not None
    assert found.name == "oxford_pets"
    assert find_entry("oxford") is None


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"colour": "red"}, "colour: Unexpected keyword argument"),
        ({"layout": "flat"}, "layout='flat' must be one of split-json, "),
        ({"classes": "ten"}, "classes: Input should be a valid integer"),
        ({"templates": ["a photo."]}, r"template 'a photo\.' must contain \{\} exactly once"),
        ({"split": None}, "the layout split-json needs `split`"),
        ({"hub": {"same_test": True}}, r"hub\.repository: Field required"),
        ({"layout": None, "hub": None}, "it needs a `layout` of files in a folder, or a copy on the `hub`"),
        ({"names": {"substitute": [["(a+)+$", ""]]}}, r"names\.substitute: Unexpected keyword argument"),
        ({"folder": "../private"}, r"folder='\.\./private' must lie below the root of all data sets"),
        ({"images": "/home"}, "images='/home' must lie below the root"),
        ({"split": "a/../../b.json"}, r"split='a/\.\./\.\./b\.json' must lie below"),
        ({"note": json.loads("[" * 300 + "]" * 300)}, "Invalid JSON: recursion limit exceeded|note: Input should be"),
        ({"counts": {"test": 2**70}}, "it holds a number of more than 64 bits in 'test'"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**json.loads(entry_of("dtd").to_json()), **change}))
    with pytest.raises(ValueError, match=f"own.json is not a valid entry of a catalog: .*{wanted}"):
        read_entry(path)
    path.write_text('{"name": "a", "templates": ["{}"], "layout": "aircraft", "name": "b"}')
    with pytest.raises(
        ValueError, match=r"own\.json is not a valid entry of a catalog: an object has the name 'name' twice"
    ):
        read_entry(path)
    path.write_text(json.dumps({"x" * 1000 + str(number): 0 for number in range(1000)}))
    with pytest.raises(ValueError, match=r"own\.json is not a valid entry of a catalog: ") as refusal:
        read_entry(path)
    assert len(str(refusal.value)) < 1000
    path.write_text("{")
    with pytest.raises(ValueError, match=r"own\.json is not a valid entry of a catalog: entry: Invalid JSON"):
        read_entry(path)


# --- class names

NAMES = [
    ("stanford_cars", "AM General Hummer SUV 2000", "2000 AM General Hummer SUV"),
    ("stanford_cars", "Ram C/V Cargo Van Minivan 2012", "2012 Ram C/V Cargo Van Minivan"),
    ("stanford_cars", "2012 FIAT 500 Abarth", "2012 FIAT 500 Abarth"),
    ("sun397", "/a/abbey", "abbey"),
    ("sun397", "/a/apartment_building/outdoor", "outdoor apartment building"),
    ("sun397", "/", "/"),
    ("sun397", "/t/train_station/platform", "platform train station"),
    ("sun397", "outdoor apartment_building", "outdoor apartment building"),
    ("ucf101", "ApplyEyeMakeup", "Apply Eye Makeup"),
    ("ucf101", "Apply_Eye_Makeup", "Apply Eye Makeup"),
    ("ucf101", "YoYo", "Yo Yo"),
    ("eurosat", "AnnualCrop", "Annual Crop Land"),
    ("eurosat", "Forest", "Forest"),
    ("eurosat", "HerbaceousVegetation", "Herbaceous Vegetation Land"),
    ("eurosat", "Highway", "Highway or Road"),
    ("eurosat", "Industrial", "Industrial Buildings"),
    ("eurosat", "Pasture", "Pasture Land"),
    ("eurosat", "PermanentCrop", "Permanent Crop Land"),
    ("eurosat", "Residential", "Residential Buildings"),
    ("eurosat", "River", "River"),
    ("eurosat", "SeaLake", "Sea or Lake"),
    ("caltech101", "airplanes", "airplane"),
    ("caltech101", "Faces", "face"),
    ("caltech101", "Leopards", "leopard"),
    ("caltech101", "Motorbikes", "motorbike"),
    ("caltech101", "car_side", "car side"),
    ("oxford_pets", "Abyssinian", "abyssinian"),
    ("oxford_pets", "american_pit_bull_terrier", "american pit bull terrier"),
    ("food101", "apple_pie", "apple pie"),
    ("fgvc_aircraft", "Boeing 707-320", "Boeing 707-320"),
]


@pytest.mark.parametrize(("name", "raw", "clean"), NAMES)
def test_class_names_are_cleaned_and_clean_ones_stay(name: str, raw: str, clean: str) -> None:
    assert entry_of(name).names.clean(raw) == clean
    assert entry_of(name).names.clean(clean) == clean


# --- every layout


@pytest.mark.parametrize("name", JSON_SETS)
def test_a_split_json_is_read(name: str, tmp_path: Path) -> None:
    make_tree(name, tmp_path)
    entry, data = entry_of(name), load_benchmark_data(name, tmp_path)
    assert data.validation is not None
    assert data.name == name
    assert data.templates == tuple(entry.templates)
    assert data.comparable
    assert data.class_names == ("two", "seven up", "nine"), "the order is that of the label ids"
    folder = tmp_path / entry.folder / entry.images
    assert paths_of(data.train) == [str(folder / row[0]) for row in ROWS]
    assert labels_of(data.train) == [1, 0, 1, 2]
    assert labels_of(data.validation) == [2, 0]
    assert labels_of(data.test) == [1, 0]
    assert data.texts().texts == [entry.templates[0].replace("{}", each) for each in data.class_names]


def test_names_in_a_json_are_cleaned_by_the_entry(tmp_path: Path) -> None:
    for name, raw, clean in NAMES:
        folder = tmp_path / entry_of(name).folder
        if entry_of(name).layout == "split-json":
            (folder / entry_of(name).images).mkdir(parents=True, exist_ok=True)
            rows = [["1.jpg", 0, raw], ["2.jpg", 1, "other thing"]]
            (folder / str(entry_of(name).split)).write_text(json.dumps({"train": rows, "val": [], "test": rows}))
            assert load_benchmark_data(name, tmp_path).class_names[0] == clean


def test_aircraft_is_read_from_its_text_files(tmp_path: Path) -> None:
    make_tree("fgvc_aircraft", tmp_path)
    data = load_benchmark_data("fgvc_aircraft", tmp_path)
    assert data.validation is not None
    assert data.class_names == ("A300", "Boeing 717", "707-320"), "the order is that of variants.txt"
    assert labels_of(data.train) == [2, 0]
    assert labels_of(data.validation) == [0]
    assert labels_of(data.test) == [1]
    assert paths_of(data.test) == [str(tmp_path / "fgvc_aircraft" / "images" / "14.jpg")]


def test_imagenet_has_sorted_wnids_and_tests_on_val(tmp_path: Path) -> None:
    make_tree("imagenet", tmp_path)
    data = load_benchmark_data("imagenet", tmp_path)
    assert data.validation is None
    images = tmp_path / "imagenet" / "images"
    assert paths_of(data.train) == [str(images / "train" / w / f"{w}_{n}.JPEG") for w in WNIDS for n in (1, 2)]
    assert labels_of(data.train) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert paths_of(data.test) == [str(images / "val" / w / f"{w}_val.JPEG") for w in WNIDS]
    assert data.class_names == ("tench", "missile (n02)", "great white shark", "missile (n04)", "crane bird")
    assert data.texts().texts == [f"a photo of a {name}." for name in WNIDS.values()]
    assert data.texts(["missile (n04)"]).texts == ["a photo of a missile."]


def test_only_the_classes_with_folders_compete_in_a_and_r(tmp_path: Path) -> None:
    for name in ("imagenet_a", "imagenet_r"):
        make_tree(name, tmp_path)
        data = load_benchmark_data(name, tmp_path)
        assert data.class_names == ("missile (n02)", "great white shark", "crane bird"), "the names are ImageNet's"
        assert dict(data.written) == {"missile (n02)": "missile"}
        assert labels_of(data.test) == [0, 1, 2]
        assert len(data.train) == 0
        assert class_names_of(data.train) == list(data.class_names)


def test_200_of_1000_classes_compete(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-adversarial"
    wnids = [f"n{number:08}" for number in range(1000)]
    folder.mkdir()
    (folder / "classnames.txt").write_text("".join(f"{wnid} name of {wnid}\n" for wnid in wnids))
    for wnid in wnids[3::5]:
        text(folder / "imagenet-a" / wnid / "1.jpg")
    data = load_benchmark_data("imagenet_a", tmp_path)
    assert data.class_names == tuple(f"name of {wnid}" for wnid in wnids[3::5])
    assert len(data.class_names) == 200
    assert labels_of(data.test) == list(range(200))


def test_sketch_has_all_wnids(tmp_path: Path) -> None:
    make_tree("imagenet_sketch", tmp_path)
    assert len(load_benchmark_data("imagenet_sketch", tmp_path).class_names) == len(WNIDS)


def test_folder_i_of_v2_is_line_i(tmp_path: Path) -> None:
    make_tree("imagenetv2", tmp_path)
    data = load_benchmark_data("imagenetv2", tmp_path)
    assert data.class_names == tuple(f"class {number}" for number in range(12)), "10 comes after 9, not after 1"
    assert [Path(path).stem for path in paths_of(data.test)] == [str(number) for number in range(12)]
    assert labels_of(data.test) == list(range(12))


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ALL)
def test_no_pickle_is_read(name: str, tmp_path: Path) -> None:
    make_tree(name, tmp_path)
    folder = tmp_path / entry_of(name).folder
    (folder / "split_fewshot").mkdir()
    for path in (folder / "preprocessed.pkl", folder / "split_fewshot" / "shot_1-seed_1.pkl"):
        path.write_bytes(pickle.dumps(Bomb()))
    data = load_benchmark_data(name, tmp_path)
    if len(data.train):
        draw_shots(data, 1, 1)


# --- what is wrong is named


@pytest.mark.parametrize("name", ALL)
def test_what_is_missing_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    entry = entry_of(name)
    with pytest.raises(FileNotFoundError, match=rf"{entry.title}: there is no f\w+ {tmp_path}.* Get .*https?://"):
        load_benchmark_data(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON: it is nested more than 16 levels deep"),
        ('{"train": [], "val": [], "test": [], "test": []}', "is no JSON: an object has the name 'test' twice"),
        ('{"train": [["x", ' + "9" * 1000 + ', "a"]], "val": [], "test": []}', "holds a number of more than 64 bits"),
        ("[]", 'must be an object with the keys "train", "val" and "test"'),
        ('{"train": [], "test": []}', 'must be an object with the keys "train", "val" and "test"'),
        ('{"train": 3, "val": [], "test": []}', '"train" of .* must be a list'),
        (
            '{"train": [["a.jpg", "0", "a"]], "val": [], "test": []}',
            r'item 0 of "train" .* must be \[path, label id, ',
        ),
        ('{"train": [], "val": [["a.jpg", 0]], "test": []}', r'item 0 of "val" .* must be \[path, label id, '),
        ('{"train": [["../a.jpg", 0, "a"]], "val": [], "test": []}', "leaves the folder of the images: '../a.jpg'"),
        ('{"train": [["/a.jpg", 0, "a"]], "val": [], "test": []}', "leaves the folder of the images: '/a.jpg'"),
        (
            '{"train": [["a.jpg", 4, "a"], ["b.jpg", 4, "b"]], "val": [], "test": []}',
            r"label ids have several class names: \{4: \['a', 'b'\]\}",
        ),
        (
            '{"train": [["a.jpg", 4, "a_b"], ["b.jpg", 5, "a b"]], "val": [], "test": []}',
            "several label ids have the class names a b",
        ),
    ],
)
def test_a_malformed_split_is_refused(content: str, wanted: str, tmp_path: Path) -> None:
    make_tree("dtd", tmp_path)
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^DTD: .*split_zhou_DescribableTextures\.json.*{wanted}|^DTD: .*{wanted}"):
        load_benchmark_data("dtd", tmp_path)


def test_an_unknown_variant_of_aircraft_is_named(tmp_path: Path) -> None:
    make_tree("fgvc_aircraft", tmp_path)
    (tmp_path / "fgvc_aircraft" / "images_variant_val.txt").write_text("13 A300\n15 A301\n")
    with pytest.raises(ValueError, match=r"line 2 of .*images_variant_val\.txt names 'A301'"):
        load_benchmark_data("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("image", ["../../private", "/private", "a/../../private"])
def test_an_image_of_aircraft_outside_of_its_folder_is_refused(image: str, tmp_path: Path) -> None:
    make_tree("fgvc_aircraft", tmp_path)
    (tmp_path / "fgvc_aircraft" / "images_variant_test.txt").write_text(f"14 A300\n{image} A300\n")
    with pytest.raises(
        ValueError, match=rf"line 2 of .*images_variant_test\.txt leaves the folder .*: '{image}\.jpg'"
    ):
        load_benchmark_data("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("name", ["fgvc_aircraft", "dtd"])
def test_images_that_are_links_to_elsewhere_are_refused_and_the_folder_may_be_one(name: str, tmp_path: Path) -> None:
    make_tree(name, tmp_path)
    images = tmp_path / entry_of(name).folder / "images"
    images.rename(tmp_path / "disk")
    images.symlink_to(tmp_path / "disk")
    assert len(load_benchmark_data(name, tmp_path).test)
    listed = next(path for path in sorted((tmp_path / "disk").rglob("*.jpg")))
    (tmp_path / "private").write_text("")
    listed.unlink()
    listed.symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=rf"leaves the folder of the images: '.*' is a link to {tmp_path}/private\."):
        load_benchmark_data(name, tmp_path)


def test_a_folder_of_images_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path)
    folder = tmp_path / "dtd" / "images" / "a"
    folder.rename(tmp_path / "private")
    folder.symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=r"leaves the folder of the images: 'a/1\.jpg' is a link to"):
        load_benchmark_data("dtd", tmp_path)


def test_class_names_without_a_name_are_refused(tmp_path: Path) -> None:
    make_tree("imagenet_a", tmp_path)
    (tmp_path / "imagenet-adversarial" / "classnames.txt").write_text("n01 tench\nn02\n")
    with pytest.raises(ValueError, match=r"line 2 of .*classnames\.txt must be a WordNet id and a name, not 'n02'"):
        load_benchmark_data("imagenet_a", tmp_path)
    (tmp_path / "imagenet-adversarial" / "classnames.txt").write_text("n02 missile\nn03 shark\n")
    with pytest.raises(ValueError, match=r"classnames\.txt has no line for n05"):
        load_benchmark_data("imagenet_a", tmp_path)


def test_folders_that_differ_are_named(tmp_path: Path) -> None:
    make_tree("imagenet", tmp_path)
    text(tmp_path / "imagenet" / "images" / "val" / "n06" / "1.JPEG")
    with pytest.raises(ValueError, match=r"must have the same folders; only one has n06"):
        load_benchmark_data("imagenet", tmp_path)
    make_tree("imagenetv2", tmp_path)
    text(tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "12" / "1.jpeg")
    with pytest.raises(ValueError, match=r"each of the 12 lines of .*, 0 to 11; missing or too many: 12"):
        load_benchmark_data("imagenetv2", tmp_path)


def test_a_name_of_the_catalog_needs_its_root() -> None:
    with pytest.raises(ValueError, match=r"EuroSAT: give the folder .* as root, or source='hub'.* as \./eurosat"):
        load_benchmark_data("eurosat")
    with pytest.raises(ValueError, match="source='disk' must be one of folder, hub"):
        load_benchmark_data("eurosat", source="disk")


# --- the Hub

PLAIN = ["zebra_crossing", "AnnualCrop", "Abyssinian"]


def write_table(folder: Path, split: str, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    pictures = [Image.new("RGB", (8, 6), (number, 0, 0)) for number in range(count)]
    table = Dataset.from_dict({"image": pictures, **columns}, features=Features({"image": ImageFeature(), **features}))
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def reds(dataset: Dataset) -> list[int]:
    return [example["image"].getpixel((0, 0))[0] for example in dataset]


def copy_of(name: str, folder: Path, raw: Sequence[str] = PLAIN, **extra: list[Any]) -> CatalogEntry:
    """An entry whose copy on the Hub is a folder of tables with the copy's splits and columns."""
    entry = entry_of(name)
    assert entry.hub is not None
    columns: dict[str, list[Any]] = {entry.hub.label: [0, 1, 2] * 4, **extra}
    types = {entry.hub.label: ClassLabel(names=list(raw)), **{column: Value("string") for column in extra}}
    if name == "oxford_pets":  # has another column of classes
        columns |= {"label_cat_dog": [0] * 12, "image_id": ["x"] * 12}
        types |= {"label_cat_dog": ClassLabel(names=["cat", "dog"]), "image_id": Value("string")}
    if name == "imagenet_r":  # its classes are strings
        columns["wnid"], types["wnid"] = list(raw) * 4, Value("string")
    if "frame" in extra:
        types["frame"] = Value("int64")
    for split in {entry.hub.train, entry.hub.validation, entry.hub.test} - {None}:
        write_table(folder / "data", str(split), columns, types)
    return replace(entry, hub=replace(entry.hub, repository=str(folder)))


@pytest.mark.parametrize("name", [name for name in JSON_SETS if name not in ("caltech101", "ucf101")])
def test_a_copy_on_the_hub_is_read(name: str, tmp_path: Path) -> None:
    entry = copy_of(name, tmp_path)
    assert entry.hub is not None
    data = read_hub(entry)
    clean = [entry.names.clean(raw) for raw in PLAIN]
    assert data.class_names == tuple(clean)
    assert labels_of(data.train) == [0, 1, 2] * 4
    assert reds(data.test) == list(range(12))
    assert (data.validation is None) == (entry.hub.validation is None)
    assert data.comparable == (name in ("oxford_pets", "stanford_cars", "sun397"))
    assert ("do not compare" in data.note) != data.comparable
    assert data.templates == tuple(entry.templates)


def test_aircraft_on_the_hub_has_the_official_splits(tmp_path: Path) -> None:
    data = read_hub(copy_of("fgvc_aircraft", tmp_path))
    assert data.comparable
    assert data.validation is not None
    assert data.class_names[0] == "zebra crossing"


def test_caltech_on_the_hub_leaves_out_what_the_tables_do_not_have(tmp_path: Path) -> None:
    data = read_hub(copy_of("caltech101", tmp_path, ["airplanes", "faces_easy", "faces"]))
    assert data.class_names == ("airplane", "face")
    assert not data.comparable
    assert "30% of the images, drawn with seed 0" in data.note
    assert len(data.train) + len(data.test) == 8
    assert {red % 3 for red in reds(data.test)} == {0, 2}
    assert [red % 3 // 2 for red in reds(data.test)] == labels_of(data.test)


def test_of_each_video_on_the_hub_the_middle_frame_is_taken(tmp_path: Path) -> None:
    videos, clips = ["g01"] * 9 + ["g02"] * 3, ["c01"] * 12
    entry = copy_of("ucf101", tmp_path, video_id=videos, clip_id=clips, frame=[4, 5, 6, 2, 3, 4, 3, 1, 1, 0, 0, 0])
    data = read_hub(entry)
    # The rows of g01 by class, with their frames: 0, 3, 6 with 4, 2, 3; 1, 4, 7 with 5, 3, 1; 2, 5, 8 with 6, 4, 1.
    assert reds(data.train) == [6, 4, 5, 9, 10, 11]
    assert labels_of(data.train) == [0, 1, 2, 0, 1, 2]
    assert not data.comparable


def test_imagenet_on_the_hub_takes_its_names_from_classnames_txt(tmp_path: Path) -> None:
    write_class_names(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01 crane\nn02 missile\nn03 missile\n")
    entry = copy_of("imagenet", tmp_path / "hub", ["crane bird, heron", "crane", "missile, rocket"])
    data = read_hub(entry, tmp_path)
    assert data.class_names == ("crane", "missile (n02)", "missile (n03)")
    assert data.texts().written == ("crane", "missile", "missile")
    with pytest.raises(ValueError, match=r"ImageNet: give the root .* ROOT/imagenet/classnames\.txt"):
        read_hub(entry)
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01 crane\nn02 missile\n")
    with pytest.raises(ValueError, match=r"has 3 classes, .*classnames\.txt has 2 lines"):
        read_hub(entry, tmp_path)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_variants_on_the_hub_are_named_by_wnid(name: str, tmp_path: Path) -> None:
    write_class_names(tmp_path / "imagenet")
    data = read_hub(copy_of(name, tmp_path / "hub", ["n02", "n03", "n05"]), tmp_path)
    assert data.class_names == ("missile (n02)", "great white shark", "crane bird")
    assert labels_of(data.test) == [0, 1, 2] * 4
    assert len(data.train) == 0


@pytest.mark.parametrize("name", ["imagenetv2", "imagenet_sketch"])
def test_what_has_no_copy_on_the_hub_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no copy on the Hub that `datasets` can read\. Get .*https://"):
        load_benchmark_data(name, source="hub")


def test_classes_on_the_hub_that_come_out_alike_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several classes are called a b once cleaned"):
        read_hub(copy_of("dtd", tmp_path, ["a_b", "a b", "c"]))


# --- own data


def make_folder(root: Path, splits: Sequence[str]) -> None:
    for split in splits:
        for name in ("red_fox", "owl"):
            for number in range(10):
                image(root / split / name / f"{number}.png")


def test_an_own_folder_needs_no_code(tmp_path: Path) -> None:
    make_folder(tmp_path / "animals", ["train", "validation", "test"])
    data = load_benchmark_data(tmp_path / "animals")
    assert data.validation is not None
    assert data.name == "animals"
    assert data.class_names == ("owl", "red fox")
    assert len(data.train) == len(data.validation) == len(data.test) == 20
    assert (data.comparable, data.note) == (False, "")


def test_an_own_folder_without_a_test_set_says_what_is_tested(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", ["train", "validation"])
    data = load_benchmark_data(str(tmp_path / "a"))
    assert data.validation is None
    assert data.note == "tested on the split validation"
    make_folder(tmp_path / "b", ["."])
    data = load_benchmark_data(str(tmp_path / "b"))
    assert (len(data.train), len(data.test)) == (14, 6)
    assert data.note == "the data have no split test: it is 30% of the images, drawn with seed 0"
    assert not set(paths_of(data.train)) & set(paths_of(data.test))
    make_folder(tmp_path / "c", ["test"])
    with pytest.raises(ValueError, match="c has no split train, only test"):
        load_benchmark_data(tmp_path / "c")


def test_a_file_with_an_entry_stands_for_its_data(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path)
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**json.loads(entry_of("dtd").to_json()), "name": "own", "templates": ["{}!"]}))
    data = load_benchmark_data(path, tmp_path)
    assert data.name == "own"
    assert data.texts().texts[0] == "two!"


def test_an_entry_for_own_images_needs_three_fields(tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", ["train", "test"])
    path = tmp_path / "own.json"
    hub = {"repository": str(tmp_path / "photos")}
    path.write_text(json.dumps({"name": "animals", "templates": ["an image of a {}."], "hub": hub}))
    data = load_benchmark_data(path)
    assert (data.name, data.comparable, data.note) == ("animals", False, "")
    assert data.texts().texts == ["an image of a owl.", "an image of a red fox."]
    assert (len(data.train), len(data.test)) == (20, 20)
    with pytest.raises(ValueError, match="animals has no layout of files in a folder that could be checked"):
        check_data_set(read_entry(path), tmp_path)


MODULE = """
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from anprompt_peft.data import RGBImage
from anprompt_peft.evaluation.benchmarks import BenchmarkData

def pair():
    features = Features({"image": RGBImage(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]}, features=features)
    return BenchmarkData("pair", rows, rows)

def number():
    return 3
"""


def test_a_function_of_the_current_folder_gives_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_of_this_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    data = load_benchmark_data("own_data_of_this_test:pair")
    assert (data.name, data.class_names, data.templates) == ("pair", ("a", "b"), ("a photo of a {}.",))
    assert str(tmp_path) not in sys.path, "it is taken out again"
    with pytest.raises(TypeError, match="own_data_of_this_test:number must return a BenchmarkData, it returned int"):
        load_benchmark_data("own_data_of_this_test:number")
    with pytest.raises(ValueError, match="the module own_data_of_this_test has no function nothing"):
        load_benchmark_data("own_data_of_this_test:nothing")


def labelled(labels: Sequence[int], names: Sequence[str] = ("a", "b", "c")) -> Dataset:
    features = Features({"image": RGBImage(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": [None] * len(labels), "label": list(labels)}, features=features)


def test_splits_must_fit_each_other() -> None:
    with pytest.raises(ValueError, match="x: the classes of train are not those of test"):
        BenchmarkData("x", labelled([0], ("b", "a")), labelled([0], ("a", "b")))
    with pytest.raises(ValueError, match="x: the classes of validation are not those of test"):
        BenchmarkData("x", labelled([0]), labelled([0]), validation=labelled([0], ("a", "b")))
    with pytest.raises(ValueError, match="x: the split test is empty"):
        BenchmarkData("x", labelled([0]), labelled([]))
    with pytest.raises(ValueError, match=r"must contain \{\} exactly once"):
        BenchmarkData("x", labelled([0]), labelled([0]), ("a photo",))
    with pytest.raises(ValueError, match=r"written has \['d'\], which are not classes"):
        BenchmarkData("x", labelled([0]), labelled([0]), written={"d": "e"})
    with pytest.raises(ValueError, match=r"synonyms has \['d'\], which are not classes"):
        BenchmarkData("x", labelled([0]), labelled([0]), synonyms={"d": ["e"]})


# --- shots

TRAIN_LABELS = [2, 0, 2, 1, 0, 0, 2, 2, 0, 2, 0, 2]
VAL_LABELS = [1, 2, 0, 0, 2, 0, 2, 0, 0, 2, 2]


@pytest.mark.parametrize("seed", [1, 2, 3, 17])
@pytest.mark.parametrize("shots", [1, 2, 4, 5, 16])
def test_shots_are_coops(shots: int, seed: int) -> None:
    """Drawn again with `random` itself: classes by their first image, train, then validation from the same stream."""
    random.seed(seed)
    expected = []
    for labels, order, count in ((TRAIN_LABELS, (2, 0, 1), shots), (VAL_LABELS, (1, 2, 0), min(shots, 4))):
        rows: list[int] = []
        for label in order:
            items = [row for row, each in enumerate(labels) if each == label]
            rows += random.sample(items, count) if count <= len(items) else items
        expected.append(tuple(rows))
    drawn = draw_shots(
        BenchmarkData("x", labelled(TRAIN_LABELS), labelled([0]), validation=labelled(VAL_LABELS)), shots, seed
    )
    assert (drawn.train, drawn.validation) == tuple(expected)


def test_a_class_with_fewer_images_gives_all_it_has() -> None:
    drawn = draw_shots(BenchmarkData("x", labelled(TRAIN_LABELS), labelled([0])), 6, 1)
    assert [TRAIN_LABELS[row] for row in drawn.train] == [2] * 6 + [0] * 5 + [1]
    assert drawn.train[6:] == (1, 4, 5, 8, 10, 3)
    assert drawn.validation == ()


def test_the_state_of_the_random_numbers_does_not_matter() -> None:
    data = BenchmarkData("x", labelled(TRAIN_LABELS), labelled([0]))
    random.seed(5)
    first, state = draw_shots(data, 2, 1), random.getstate()
    random.seed(6)
    assert draw_shots(data, 2, 1) == first
    random.seed(5)
    assert random.getstate() == state, "nor is it changed"


def test_wrong_draws_are_refused() -> None:
    data = BenchmarkData("x", labelled(TRAIN_LABELS), labelled([0]), validation=labelled(VAL_LABELS))
    with pytest.raises(ShotsError, match="shots=0 must be at least 1"):
        draw_shots(data, 0, 1)
    with pytest.raises(ValueError, match="sampling='dassl' must be one of coop, seeded"):
        draw_shots(data, 1, 1, "dassl")
    with pytest.raises(ShotsError, match="x has no images to train on"):
        draw_shots(BenchmarkData("x", labelled([]), labelled([0])), 1, 1)
    with pytest.raises(ShotsError, match="class 1 has"):
        draw_shots(data, 2, 1, "seeded")


def test_shots_are_kept_as_json(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path)
    data = load_benchmark_data("dtd", tmp_path)
    drawn, path = draw_shots(data, 1, 1), tmp_path / "shots.json"
    drawn.save(path, data)
    record = json.loads(path.read_text())
    assert record["data"] == "dtd"
    assert sorted(record["train"]) == sorted(
        [row, ROWS[row][0], ROWS[row][2].replace("_", " ")] for row in drawn.train
    )
    assert len(record["validation"]) == 2
    assert Shots.load(path, data) == drawn
    record["train"][0][1] = "c/9.jpg"
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"shots.json does not hold shots of dtd: .*c/9\.jpg.* is not what the data have"
    ):
        Shots.load(path, data)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"shots.json does not hold shots of dtd"):
        Shots.load(path, data)


# --- the check


def expecting(name: str, counts: dict[str, int], classes: int) -> CatalogEntry:
    return replace(entry_of(name), counts=counts, classes=classes)


@pytest.mark.parametrize("name", ALL)
def test_a_whole_data_set_is_found(name: str, tmp_path: Path) -> None:
    make_tree(name, tmp_path, image)
    sizes = {
        "split-json": ({"train": 4, "validation": 2, "test": 2}, 3),
        "aircraft": ({"train": 2, "validation": 1, "test": 1}, 3),
        "imagenet": ({"train": 10, "test": 5}, 5),
        "numbered-folders": ({"test": 12}, 12),
        "wnid-folders": ({"test": 5}, 5) if name == "imagenet_sketch" else ({"test": 3}, 3),
    }
    finding = check_data_set(expecting(name, *sizes[str(entry_of(name).layout)]), tmp_path, all_images=True)
    assert finding.status == Status.FOUND
    assert (finding.problems, finding.fetch) == ([], [])


def test_other_numbers_are_different(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path, image)
    finding = check_data_set(expecting("dtd", {"train": 5, "test": 2}, 4), tmp_path)
    assert finding.status == Status.DIFFERENT
    assert finding.problems == ["3 classes, not 4", "4 images in train, not 5"]
    assert finding.fetch


def test_images_that_are_not_there_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path, image)
    entry = expecting("dtd", {"train": 4, "validation": 2, "test": 2}, 3)
    images = tmp_path / "dtd" / "images"
    (images / "c" / "2.jpg").write_bytes(b"no image")  # the second of its class in train
    assert check_data_set(entry, tmp_path).status == Status.FOUND
    finding = check_data_set(entry, tmp_path, all_images=True)
    assert finding.status == Status.BROKEN
    assert finding.problems == [
        f"the first unreadable image: {images / 'c' / '2.jpg'} cannot be decoded: no known image format"
    ]
    (images / "b" / "1.jpg").unlink()
    (images / "b" / "2.jpg").unlink()
    finding = check_data_set(entry, tmp_path)
    assert finding.problems == [f"2 of 8 images are not there, the first is {images / 'b' / '1.jpg'}"]
    (tmp_path / "dtd" / str(entry.split)).write_text("{")
    finding = check_data_set(entry, tmp_path)
    assert finding.status == Status.BROKEN
    assert "is no JSON" in finding.problems[0]
    assert finding.classes is None


def test_the_command_tells_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("missing    ") == 15
    assert "get split: https://drive.google.com" in shown
    make_tree("dtd", tmp_path, image)
    assert main(["datasets", "check", str(tmp_path), "--name", "DTD", "--json"]) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["status"], record["classes"], record["counts"]["train"]) == ("different", 3, 4)
    assert "3 classes, not 47" in record["problems"]
    own = tmp_path / "own.json"
    own.write_text(expecting("dtd", {"train": 4}, 3).to_json())
    assert main(["datasets", "check", str(tmp_path), "--name", str(own)]) == 0
    assert capsys.readouterr().out == "found      DTD              3 classes; 4 train, 2 validation, 2 test\n"
    assert main(["datasets", "check", str(tmp_path), "--name", "dtt"]) == 2
    assert "dtt is none of the catalog's data sets (imagenet, " in capsys.readouterr().err


def test_the_command_lists_and_shows_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ALL)
    assert lines[3].split() == ["oxford_pets", "oxford_pets", "37", "3669", "timm/oxford-iiit-pet", "yes"]
    assert main(["datasets", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["comparable_on_hub"] is False
    assert main(["datasets", "show", "EuroSAT"]) == 0
    path = tmp_path / "own.json"
    path.write_text(capsys.readouterr().out)
    assert read_entry(path) == entry_of("eurosat")
