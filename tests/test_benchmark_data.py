"""The field's data sets: miniature trees in every layout, tables with every schema of the Hub, and custom data.

Images of the trees are text, because reading must not open them; those of a check are images.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Value
from datasets import Image as ImageFeature

from anprompt_cli import main
from anprompt_peft.data import class_names_of
from anprompt_peft.evaluation.benchmarks import (
    BenchmarkData,
    CatalogEntry,
    catalog,
    draw_shots,
    find_entry,
    load_benchmark_data,
    read_entry,
)
from anprompt_peft.evaluation.benchmarks.checks import Status, check_data_set
from anprompt_peft.evaluation.benchmarks.sources import read_hub
from pictures import assert_refused, labelled, labels, paths, photo_tree, pictures, reds, table, tree

ALL = tuple(catalog())
JSON_SETS = tuple(name for name, entry in catalog().items() if entry.layout == "split-json")
ROWS = [("c/1.jpg", 7, "seven_up"), ("a/1.jpg", 2, "two"), ("c/2.jpg", 7, "seven_up"), ("b/1.jpg", 9, "nine")]
SPLITS = {
    "train": ROWS,
    "val": [("b/2.jpg", 9, "nine"), ("a/2.jpg", 2, "two")],
    "test": [("c/3.jpg", 7, "seven_up"), ("a/3.jpg", 2, "two")],
}
LINES = {"train": ["11 707-320", "12 A300"], "val": ["13 A300"], "test": ["14 Boeing 717"]}
WNIDS = {"n01": "tench", "n02": "missile", "n03": "great white shark", "n04": "missile", "n05": "crane bird"}
OF_A_AND_R = ("n05", "n02", "n03")
BESIDE_IMAGES = ["README.txt", "loose.jpg", "n02/.1.jpg", "n02/Thumbs.db", "n02/about.txt", "__MACOSX/1.jpg"]


def class_names_txt(names: dict[str, str]) -> str:
    return "".join(f"{wnid} {name}\n" for wnid, name in names.items())


def miniature(entry: CatalogEntry) -> tuple[dict[str, str], list[str]]:
    """Text files and images of a small data set in the layout of an entry."""
    if entry.layout == "split-json":
        return {str(entry.split): json.dumps(SPLITS)}, [path for rows in SPLITS.values() for path, _, _ in rows]
    if entry.layout == "aircraft":
        lists = {f"images_variant_{split}.txt": "\n".join(lines) + "\n" for split, lines in LINES.items()}
        images = [f"{line.split()[0]}.jpg" for lines in LINES.values() for line in lines]
        return {"variants.txt": "A300\nBoeing 717\n707-320\n", **lists}, images
    if entry.layout == "numbered-folders":
        names = {f"n{number:02}": f"class {number}" for number in range(12)}
        return {"classnames.txt": class_names_txt(names)}, [f"{number}/{number}.jpeg" for number in range(12)]
    if entry.layout == "imagenet":
        train = [f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in reversed(WNIDS) for number in (2, 1)]
        return {"classnames.txt": class_names_txt(WNIDS)}, train + [f"val/{wnid}/{wnid}_val.JPEG" for wnid in WNIDS]
    wnids = WNIDS if entry.name == "imagenet_sketch" else OF_A_AND_R
    return {"classnames.txt": class_names_txt(WNIDS)}, [f"{wnid}/1.jpg" for wnid in wnids] + BESIDE_IMAGES


def make_tree(name: str, root: Path, write: Callable[..., Path] = tree) -> Path:
    """A miniature of a data set in its own layout; return its folder."""
    entry, folder = catalog()[name], root / catalog()[name].folder
    texts, images = miniature(entry)
    write(folder / entry.images, *images)
    for file, content in texts.items():
        (folder / file).write_text(content)
    return folder


def load_tree(name: str, root: Path) -> BenchmarkData:
    make_tree(name, root)
    return load_benchmark_data(name, root)


# --- the catalog

PHOTO = "a photo of a {}."
PUBLISHED: dict[str, tuple[int, list[int], str]] = {
    "imagenet": (1000, [1_281_167, 50_000], PHOTO),
    "caltech101": (100, [4128, 1649, 2465], PHOTO),
    "oxford_pets": (37, [2944, 736, 3669], "a photo of a {}, a type of pet."),
    "stanford_cars": (196, [6509, 1635, 8041], PHOTO),
    "oxford_flowers": (102, [4093, 1633, 2463], "a photo of a {}, a type of flower."),
    "food101": (101, [50_500, 20_200, 30_300], "a photo of {}, a type of food."),
    "fgvc_aircraft": (100, [3334, 3333, 3333], "a photo of a {}, a type of aircraft."),
    "sun397": (397, [15_880, 3970, 19_850], PHOTO),
    "dtd": (47, [2820, 1128, 1692], "{} texture."),
    "eurosat": (10, [13_500, 5400, 8100], "a centered satellite photo of {}."),
    "ucf101": (101, [7639, 1898, 3783], "a photo of a person doing {}."),
    "imagenetv2": (1000, [10_000], PHOTO),
    "imagenet_sketch": (1000, [50_889], PHOTO),
    "imagenet_a": (200, [7500], PHOTO),
    "imagenet_r": (200, [30_000], PHOTO),
}


def test_the_catalog_is_that_of_the_published_tables(tmp_path: Path) -> None:
    """With their order, classes, images and CoOp's templates; ImageNet and its variants have one ensemble of seven."""
    assert tuple(PUBLISHED) == ALL
    for name, entry in catalog().items():
        assert (entry.classes, list(entry.counts.values()), *entry.templates) == PUBLISHED[name]
        assert bool(entry.ensemble) == name.startswith("imagenet")
        (tmp_path / "own.json").write_text(entry.to_json())
        assert read_entry(tmp_path / "own.json") == entry
    (ensemble,) = {tuple(entry.ensemble) for entry in catalog().values() if entry.ensemble}
    assert len(set(ensemble)) == 7


@pytest.mark.parametrize("spelling", ["oxford_pets", "OxfordPets", "oxford-pets"])
def test_names_are_found_in_any_case_and_with_hyphens(spelling: str) -> None:
    assert find_entry(spelling) is catalog()["oxford_pets"]
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
    path.write_text(json.dumps({**json.loads(catalog()["dtd"].to_json()), **change}))
    assert_refused(f"own.json is not a valid entry of a catalog: .*{wanted}", read_entry, path)


def test_a_file_that_is_not_an_entry_is_refused_in_short(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"name": "a", "templates": ["{}"], "layout": "aircraft", "name": "b"}')
    assert_refused(r"own\.json is not a valid entry of a catalog: .* has the name 'name' twice", read_entry, path)
    path.write_text("{")
    assert_refused(r"own\.json is not a valid entry of a catalog: entry: Invalid JSON", read_entry, path)
    path.write_text(json.dumps({"x" * 1000 + str(number): 0 for number in range(1000)}))
    with pytest.raises(ValueError, match=r"own\.json is not a valid entry of a catalog: ") as refusal:
        read_entry(path)
    assert len(str(refusal.value)) < 1000


# --- class names

NAMES = {
    "stanford_cars": {
        "AM General Hummer SUV 2000": "2000 AM General Hummer SUV",
        "Ram C/V Cargo Van Minivan 2012": "2012 Ram C/V Cargo Van Minivan",
        "2012 FIAT 500 Abarth": "2012 FIAT 500 Abarth",
    },
    "sun397": {
        "/a/abbey": "abbey",
        "/a/apartment_building/outdoor": "outdoor apartment building",
        "/": "/",
        "/t/train_station/platform": "platform train station",
        "outdoor apartment_building": "outdoor apartment building",
    },
    "ucf101": {"ApplyEyeMakeup": "Apply Eye Makeup", "Apply_Eye_Makeup": "Apply Eye Makeup", "YoYo": "Yo Yo"},
    "eurosat": {
        "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
        "SeaLake": "Sea or Lake",
    },
    "caltech101": {
        "airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike",
        "car_side": "car side",
    },
    "oxford_pets": {"Abyssinian": "abyssinian", "american_pit_bull_terrier": "american pit bull terrier"},
    "food101": {"apple_pie": "apple pie"},
    "fgvc_aircraft": {"Boeing 707-320": "Boeing 707-320"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "clean"), [(name, *pair) for name in NAMES for pair in NAMES[name].items()])
def test_class_names_are_cleaned_and_clean_ones_stay(name: str, raw: str, clean: str, tmp_path: Path) -> None:
    entry = catalog()[name]
    assert entry.names.clean(raw) == entry.names.clean(clean) == clean
    if entry.layout == "split-json":
        rows = [["1.jpg", 0, raw], ["2.jpg", 1, "other thing"]]
        tree(tmp_path, f"{entry.folder}/{entry.images}/")
        (tmp_path / entry.folder / str(entry.split)).write_text(json.dumps({"train": rows, "val": [], "test": rows}))
        assert load_benchmark_data(name, tmp_path).class_names[0] == clean


# --- every layout


@pytest.mark.parametrize("name", JSON_SETS)
def test_a_split_json_is_read(name: str, tmp_path: Path) -> None:
    entry, data = catalog()[name], load_tree(name, tmp_path)
    assert (data.name, data.templates, data.comparable) == (name, tuple(entry.templates), True)
    assert data.class_names == ("two", "seven up", "nine"), "the order is that of the label ids"
    folder = tmp_path / entry.folder / entry.images
    assert paths(data.train) == [str(folder / row[0]) for row in ROWS]
    assert [labels(split) for split in (data.train, data.validation, data.test)] == [[1, 0, 1, 2], [2, 0], [1, 0]]
    assert data.texts().texts == [entry.templates[0].replace("{}", each) for each in data.class_names]


def test_aircraft_is_read_from_its_text_files(tmp_path: Path) -> None:
    data = load_tree("fgvc_aircraft", tmp_path)
    assert data.class_names == ("A300", "Boeing 717", "707-320"), "the order is that of variants.txt"
    assert [labels(split) for split in (data.train, data.validation, data.test)] == [[2, 0], [0], [1]]
    assert paths(data.test) == [str(tmp_path / "fgvc_aircraft" / "images" / "14.jpg")]


def test_imagenet_has_sorted_wnids_and_tests_on_val(tmp_path: Path) -> None:
    data, images = load_tree("imagenet", tmp_path), tmp_path / "imagenet" / "images"
    assert data.validation is None
    assert paths(data.train) == [str(images / "train" / w / f"{w}_{n}.JPEG") for w in WNIDS for n in (1, 2)]
    assert labels(data.train) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert paths(data.test) == [str(images / "val" / w / f"{w}_val.JPEG") for w in WNIDS]
    assert data.class_names == ("tench", "missile (n02)", "great white shark", "missile (n04)", "crane bird")
    assert data.texts().texts == [f"a photo of a {name}." for name in WNIDS.values()]
    assert data.texts(["missile (n04)"]).texts == ["a photo of a missile."]


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r", "imagenet_sketch"])
def test_only_the_classes_with_folders_compete(name: str, tmp_path: Path) -> None:
    """Of what lies in the folders, images are read that are read elsewhere: hidden files and other endings are not."""
    data = load_tree(name, tmp_path)
    wnids = sorted(WNIDS if name == "imagenet_sketch" else OF_A_AND_R)
    names = {"n02": "missile (n02)", "n04": "missile (n04)"}
    assert data.class_names == tuple(names.get(wnid, WNIDS[wnid]) for wnid in wnids), "the names are ImageNet's"
    assert dict(data.written) == {names[wnid]: "missile" for wnid in wnids if wnid in names}
    assert labels(data.test) == list(range(len(wnids)))
    assert [Path(path).parent.name for path in paths(data.test)] == wnids
    assert (len(data.train), class_names_of(data.train)) == (0, list(data.class_names))


def test_folder_i_of_v2_is_line_i(tmp_path: Path) -> None:
    data = load_tree("imagenetv2", tmp_path)
    assert data.class_names == tuple(f"class {number}" for number in range(12)), "10 comes after 9, not after 1"
    assert [Path(path).stem for path in paths(data.test)] == [str(number) for number in range(12)]
    assert labels(data.test) == list(range(12))


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ALL)
def test_no_pickle_is_read(name: str, tmp_path: Path) -> None:
    folder = tree(make_tree(name, tmp_path), "split_fewshot/")
    for file in ("preprocessed.pkl", "split_fewshot/shot_1-seed_1.pkl"):
        (folder / file).write_bytes(pickle.dumps(Bomb()))
    data = load_benchmark_data(name, tmp_path)
    if len(data.train):
        draw_shots(data, 1, 1)


# --- what is wrong is named


@pytest.mark.parametrize("name", ALL)
def test_what_is_missing_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    message = rf"{catalog()[name].title}: there is no f\w+ {tmp_path}.* Get .*https?://"
    with pytest.raises(FileNotFoundError, match=message):
        load_benchmark_data(name, tmp_path)


def split_json(train: str, val: str = "[]") -> str:
    return f'{{"train": {train}, "val": {val}, "test": []}}'


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: it is nested more than 16 levels deep"),
        ('{"train": [], "val": [], "test": [], "test": []}', "is not valid JSON: an object has the name 'test' twice"),
        (split_json('[["x", ' + "9" * 1000 + ', "a"]]'), "holds a number of more than 64 bits"),
        ("[]", 'must be an object with the keys "train", "val" and "test"'),
        ('{"train": [], "test": []}', 'must be an object with the keys "train", "val" and "test"'),
        (split_json("3"), '"train" of .* must be a list'),
        (split_json('[["a.jpg", "0", "a"]]'), r'item 0 of "train" .* must be \[path, label id, '),
        (split_json("[]", '[["a.jpg", 0]]'), r'item 0 of "val" .* must be \[path, label id, '),
        (split_json('[["../a.jpg", 0, "a"]]'), "leaves the folder of the images: '../a.jpg'"),
        (split_json('[["/a.jpg", 0, "a"]]'), "leaves the folder of the images: '/a.jpg'"),
        (split_json('[["a.jpg", 4, "a"], ["b.jpg", 4, "b"]]'), r"have several class names: \{4: \['a', 'b'\]\}"),
        (split_json('[["a.jpg", 4, "a_b"], ["b.jpg", 5, "a b"]]'), "several label ids have the class names a b"),
    ],
)
def test_a_malformed_split_is_refused(content: str, wanted: str, tmp_path: Path) -> None:
    (make_tree("dtd", tmp_path) / "split_zhou_DescribableTextures.json").write_text(content)
    message = rf"^DTD: .*split_zhou_DescribableTextures\.json.*{wanted}|^DTD: .*{wanted}"
    assert_refused(message, load_benchmark_data, "dtd", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "wanted"),
    [
        ("fgvc_aircraft", "images_variant_val.txt", "13 A300\n15 A301\n", "line 2 of .*_val.txt names 'A301'"),
        ("fgvc_aircraft", "images_variant_test.txt", "14 A300\n/private A300\n", "line 2 of .*: '/private.jpg'"),
        (
            "fgvc_aircraft",
            "images_variant_test.txt",
            "../../private A300",
            "line 1 of .* leaves .*: '../../private.jpg'",
        ),
        ("fgvc_aircraft", "images_variant_test.txt", "a/../../private A300", "leaves .*: 'a/../../private.jpg'"),
        (
            "imagenet_a",
            "classnames.txt",
            "n01 tench\nn02\n",
            "line 2 of .* must be a WordNet id and a name, not 'n02'",
        ),
        ("imagenet_a", "classnames.txt", "n02 missile\nn03 shark\n", r"classnames\.txt has no line for n05"),
        ("imagenet", "images/val/n06/1.JPEG", "", "must have the same folders; only one has n06"),
        (
            "imagenetv2",
            "classnames.txt",
            "n01 a\nn02 b\n",
            "of the 2 lines of .*, 0 to 1; missing or too many: 10, 11, 2",
        ),
    ],
)
def test_a_list_or_folder_that_does_not_fit_is_refused(
    name: str, file: str, content: str, wanted: str, tmp_path: Path
) -> None:
    path = make_tree(name, tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert_refused(wanted, load_benchmark_data, name, tmp_path)


@pytest.mark.parametrize(("name", "link"), [("fgvc_aircraft", "14.jpg"), ("dtd", "a/1.jpg"), ("dtd", "a")])
def test_links_out_of_the_folder_of_images_are_refused_and_it_may_be_one(name: str, link: str, tmp_path: Path) -> None:
    images = make_tree(name, tmp_path) / "images"
    images.rename(tmp_path / "disk")
    images.symlink_to(tmp_path / "disk")
    assert len(load_benchmark_data(name, tmp_path).test)
    (images / link).rename(tmp_path / "private")
    (images / link).symlink_to(tmp_path / "private")
    message = rf"leaves the folder of the images: '{link}.*' is a link to {tmp_path}/private"
    assert_refused(message, load_benchmark_data, name, tmp_path)


def test_a_folder_without_folders_of_classes_is_refused(tmp_path: Path) -> None:
    folder = make_tree("imagenet_a", tmp_path)
    (folder / "imagenet-a").rename(folder / "elsewhere")
    tree(folder / "imagenet-a", "1.jpg", ".hidden/")
    with pytest.raises(FileNotFoundError, match=r"ImageNet-A: .*/imagenet-a has no folders of classes\. Get "):
        load_benchmark_data("imagenet_a", tmp_path)


def test_a_name_of_the_catalog_needs_its_root() -> None:
    message = r"EuroSAT: give the folder .* as root, or source='hub'.* as \./eurosat"
    assert_refused(message, load_benchmark_data, "eurosat")
    assert_refused("source='disk' must be one of folder, hub", load_benchmark_data, "eurosat", source="disk")


# --- the Hub

PLAIN = ["zebra_crossing", "AnnualCrop", "Abyssinian"]


def copy_of(name: str, folder: Path, raw: Sequence[str] = PLAIN, **extra: list[Any]) -> CatalogEntry:
    """An entry whose copy on the Hub is a folder of tables with the copy's splits and columns."""
    entry = catalog()[name]
    assert entry.hub is not None
    columns: dict[str, list[Any]] = {"image": pictures(12), entry.hub.label: [0, 1, 2] * 4, **extra}
    types = {"image": ImageFeature(), entry.hub.label: ClassLabel(names=list(raw))}
    types |= {column: Value("int64" if column == "frame" else "string") for column in extra}
    if name == "oxford_pets":  # has another column of classes
        columns |= {"label_cat_dog": [0] * 12, "image_id": ["x"] * 12}
        types |= {"label_cat_dog": ClassLabel(names=["cat", "dog"]), "image_id": Value("string")}
    if name == "imagenet_r":  # its classes are strings
        columns["wnid"], types["wnid"] = list(raw) * 4, Value("string")
    for split in {entry.hub.train, entry.hub.validation, entry.hub.test} - {None}:
        table(folder / "data" / f"{split}-00000-of-00001.parquet", columns, types)
    return replace(entry, hub=replace(entry.hub, repository=str(folder)))


@pytest.mark.parametrize("name", ALL[2:10])
def test_a_copy_on_the_hub_is_read(name: str, tmp_path: Path) -> None:
    entry = copy_of(name, tmp_path)
    data = read_hub(entry)
    assert data.class_names == tuple(map(entry.names.clean, PLAIN))
    assert labels(data.train) == [0, 1, 2] * 4
    assert reds(data.test) == list(range(12))
    assert (data.validation is not None) == (name in ("oxford_flowers", "fgvc_aircraft", "eurosat"))
    assert data.comparable == (name in ("oxford_pets", "stanford_cars", "fgvc_aircraft", "sun397"))
    assert ("do not compare" in data.note) != data.comparable
    assert data.templates == tuple(entry.templates)


def test_caltech_on_the_hub_leaves_out_what_the_tables_do_not_have(tmp_path: Path) -> None:
    data = read_hub(copy_of("caltech101", tmp_path, ["airplanes", "faces_easy", "faces"]))
    assert (data.class_names, data.comparable) == (("airplane", "face"), False)
    assert "30% of the images, drawn with seed 0" in data.note
    assert len(data.train) + len(data.test) == 8
    assert {red % 3 for red in reds(data.test)} == {0, 2}
    assert [red % 3 // 2 for red in reds(data.test)] == labels(data.test)


def test_of_each_video_on_the_hub_the_middle_frame_is_taken(tmp_path: Path) -> None:
    videos, clips = ["g01"] * 9 + ["g02"] * 3, ["c01"] * 12
    entry = copy_of("ucf101", tmp_path, video_id=videos, clip_id=clips, frame=[4, 5, 6, 2, 3, 4, 3, 1, 1, 0, 0, 0])
    data = read_hub(entry)
    # The rows of g01 by class, with their frames: 0, 3, 6 with 4, 2, 3; 1, 4, 7 with 5, 3, 1; 2, 5, 8 with 6, 4, 1.
    assert reds(data.train) == [6, 4, 5, 9, 10, 11]
    assert labels(data.train) == [0, 1, 2, 0, 1, 2]
    assert not data.comparable


def test_imagenet_on_the_hub_takes_its_names_from_classnames_txt(tmp_path: Path) -> None:
    file = tree(tmp_path / "imagenet", "classnames.txt") / "classnames.txt"
    file.write_text("n01 crane\nn02 missile\nn03 missile\n")
    entry = copy_of("imagenet", tmp_path / "hub", ["crane bird, heron", "crane", "missile, rocket"])
    data = read_hub(entry, tmp_path)
    assert data.class_names == ("crane", "missile (n02)", "missile (n03)")
    assert data.texts().written == ("crane", "missile", "missile")
    assert_refused(r"ImageNet: give the root .* ROOT/imagenet/classnames\.txt", read_hub, entry)
    file.write_text("n01 crane\nn02 missile\n")
    assert_refused(r"has 3 classes, .*classnames\.txt has 2 lines", read_hub, entry, tmp_path)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_variants_on_the_hub_are_named_by_wnid(name: str, tmp_path: Path) -> None:
    make_tree("imagenet", tmp_path)
    data = read_hub(copy_of(name, tmp_path / "hub", ["n02", "n03", "n05"]), tmp_path)
    assert data.class_names == ("missile (n02)", "great white shark", "crane bird")
    assert labels(data.test) == [0, 1, 2] * 4
    assert len(data.train) == 0


def test_what_cannot_be_read_from_the_hub_says_so(tmp_path: Path) -> None:
    for name in ("imagenetv2", "imagenet_sketch"):
        message = r"has no copy on the Hub that `datasets` can read\. Get .*https://"
        assert_refused(message, load_benchmark_data, name, source="hub")
    same = copy_of("dtd", tmp_path, ["a_b", "a b", "c"])
    assert_refused("several classes are called a b once cleaned", read_hub, same)
    assert same.hub is not None
    no_split = replace(same, hub=replace(same.hub, train=None, test=None))
    assert_refused("needs the name of a split to train or to test on", read_hub, no_split)


# --- custom data


def make_folder(root: Path, *splits: str) -> Path:
    names = [f"{split}/{name}/{n}.png" for split in splits for name in ("red_fox", "owl") for n in range(10)]
    return photo_tree(root, *names)


def test_a_custom_folder_needs_no_code_and_says_what_is_tested(tmp_path: Path) -> None:
    data = load_benchmark_data(make_folder(tmp_path / "animals", "train", "validation", "test"))
    assert (data.name, data.class_names) == ("animals", ("owl", "red fox"))
    assert data.validation is not None
    assert len(data.train) == len(data.validation) == len(data.test) == 20
    assert (data.comparable, data.note) == (False, "")
    data = load_benchmark_data(str(make_folder(tmp_path / "a", "train", "validation")))
    assert (data.validation, data.note) == (None, "tested on the split validation")
    data = load_benchmark_data(str(make_folder(tmp_path / "b", ".")))
    assert (len(data.train), len(data.test)) == (14, 6)
    assert data.note == "the data have no split test: it is 30% of the images, drawn with seed 0"
    assert not set(paths(data.train)) & set(paths(data.test))
    assert_refused("c has no split train, only test", load_benchmark_data, make_folder(tmp_path / "c", "test"))


def test_a_file_with_an_entry_stands_for_its_data(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path)
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**json.loads(catalog()["dtd"].to_json()), "name": "own", "templates": ["{}!"]}))
    data = load_benchmark_data(path, tmp_path)
    assert (data.name, data.texts().texts[0]) == ("own", "two!")


def test_an_entry_for_custom_images_needs_three_fields(tmp_path: Path) -> None:
    hub = {"repository": str(make_folder(tmp_path / "photos", "train", "test"))}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": "animals", "templates": ["an image of a {}."], "hub": hub}))
    data = load_benchmark_data(path)
    assert (data.name, data.comparable, data.note) == ("animals", False, "")
    assert data.texts().texts == ["an image of a owl.", "an image of a red fox."]
    assert (len(data.train), len(data.test)) == (20, 20)
    message = "animals has no layout of files in a folder that could be checked"
    assert_refused(message, check_data_set, read_entry(path), tmp_path)


MODULE = """
from anprompt_peft.evaluation.benchmarks import BenchmarkData
from pictures import labelled

def pair():
    return BenchmarkData("pair", labelled([0, 1], "ab"), labelled([0, 1], "ab"))

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
    message = "the module own_data_of_this_test has no function nothing"
    assert_refused(message, load_benchmark_data, "own_data_of_this_test:nothing")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"train": labelled([0], "bac")}, "x: the classes of train are not those of test"),
        ({"validation": labelled([0], "ab")}, "x: the classes of validation are not those of test"),
        ({"test": labelled([])}, "x: the split test is empty"),
        ({"test": labelled([0, -1])}, "1 of 2 examples have no label from 0 to 2"),
        ({"templates": ("a photo",)}, r"must contain \{\} exactly once"),
        ({"ensemble": ("art",)}, "template 'art' must contain"),
        ({"written": {"d": "e"}}, r"written has \['d'\], which are not classes"),
        ({"synonyms": {"d": ["e"]}}, r"synonyms has \['d'\], which are not classes"),
    ],
)
def test_splits_texts_and_classes_must_fit_each_other(change: dict[str, Any], wanted: str) -> None:
    assert_refused(wanted, BenchmarkData, **{"name": "x", "train": labelled([0]), "test": labelled([0]), **change})


# --- the check


def expecting(name: str, counts: dict[str, int], classes: int) -> CatalogEntry:
    return replace(catalog()[name], counts=counts, classes=classes)


@pytest.mark.parametrize("name", ALL)
def test_a_whole_data_set_is_found(name: str, tmp_path: Path) -> None:
    make_tree(name, tmp_path, photo_tree)
    sizes = {
        "split-json": ({"train": 4, "validation": 2, "test": 2}, 3),
        "aircraft": ({"train": 2, "validation": 1, "test": 1}, 3),
        "imagenet": ({"train": 10, "test": 5}, 5),
        "numbered-folders": ({"test": 12}, 12),
        "wnid-folders": ({"test": 5}, 5) if name == "imagenet_sketch" else ({"test": 3}, 3),
    }
    finding = check_data_set(expecting(name, *sizes[str(catalog()[name].layout)]), tmp_path, all_images=True)
    assert (finding.status, finding.problems, finding.fetch) == (Status.FOUND, [], [])


def test_other_numbers_are_different(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path, photo_tree)
    finding = check_data_set(expecting("dtd", {"train": 5, "test": 2}, 4), tmp_path)
    assert (finding.status, finding.problems) == (Status.DIFFERENT, ["3 classes, not 4", "4 images in train, not 5"])
    assert finding.fetch


def test_images_that_are_not_there_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    images = make_tree("dtd", tmp_path, photo_tree) / "images"
    entry = expecting("dtd", {"train": 4, "validation": 2, "test": 2}, 3)
    broken, missing = images / "c" / "2.jpg", images / "b" / "1.jpg"  # the first is the second of its class in train
    broken.write_bytes(b"no image")
    assert check_data_set(entry, tmp_path).status == Status.FOUND
    finding = check_data_set(entry, tmp_path, all_images=True)
    unreadable = f"the first unreadable image: {broken} cannot be decoded: no known image format"
    assert (finding.status, finding.problems) == (Status.BROKEN, [unreadable])
    missing.unlink()
    (images / "b" / "2.jpg").unlink()
    assert check_data_set(entry, tmp_path).problems == [f"2 of 8 images are not there, the first is {missing}"]
    (tmp_path / "dtd" / str(entry.split)).write_text("{")
    finding = check_data_set(entry, tmp_path)
    assert (finding.status, finding.classes) == (Status.BROKEN, None)
    assert "is not valid JSON" in finding.problems[0]


def test_the_command_tells_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("missing    ") == 15
    assert "get split: https://drive.google.com" in shown
    make_tree("dtd", tmp_path, photo_tree)
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
    assert read_entry(path) == catalog()["eurosat"]
