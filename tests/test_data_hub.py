"""Data sets by their names on the Hub, over real HTTP: datasets' own client against the stand-in of `hub_server`.

Functions without `test_` run in one client process, because huggingface_hub reads its endpoint when it is imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest
from datasets import ClassLabel
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from PIL import Image

from anprompt_peft.data import CorruptImageError, check_images, class_names_of, load_image_data
from hub_server import ID, REVISION, HubHandler, HubServer, Refused, Route, entry
from pictures import pictures, table

Run = Callable[..., Any]
COLOURS = {"red_brick": (200, 40, 30), "blueSky": (90, 150, 230)}


class DatasetHandler(HubHandler):
    """The routes of data sets, for reading."""

    routes: ClassVar[list[Route]] = [
        ("GET", "/api/agent-harnesses", "nothing"),
        ("GET", f"/api/datasets/{ID}", "info"),
        ("GET", f"/api/datasets/{ID}/revision/{REVISION}", "info"),
        ("GET", f"/api/datasets/{ID}/tree/{REVISION}(?:/(?P<folder>.+))?", "tree"),
        ("GET", f"/datasets/{ID}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ]

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        """GET datasets/ID/tree/REV/FOLDER, with folders, and all the way down if asked to."""
        files = self.commit_of(self.repo(repo), revision).files
        start = f"{folder}/" if folder else ""
        inside = [path for path in sorted(files) if path.startswith(start)]
        if not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        folders = {path[:at] for path in inside for at in range(len(start), len(path)) if path[at] == "/"}
        found = [entry(path, files[path]) for path in inside]
        found += [{"type": "directory", "path": path, "size": 0, "oid": git_id(path)} for path in sorted(folders)]
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        self.reply([each for each in found if deep or "/" not in each["path"][len(start) :]])


def git_id(path: str) -> str:
    return hashlib.sha1(path.encode()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub with a public folder of images, tagged before an image broke, and a private set of two configurations."""
    folder = tmp_path_factory.mktemp("repos")
    with HubServer({"alice-token": "alice", "bob-token": "bob"}) as server:
        server.RequestHandlerClass = DatasetHandler
        images = {}
        for split in ("train", "test"):
            for name, colour in COLOURS.items():
                for number in range(2):
                    path = folder / "picture.png"
                    Image.new("RGB", (6, 6), (*colour[:2], number)).save(path)
                    images[f"{split}/{name}/{number}.png"] = path.read_bytes()
        walls = server.create("alice/walls")
        walls.tags["v1"] = walls.commit("main", images, "Upload").sha
        walls.commit("main", {**images, "train/red_brick/0.png": b"no image"}, "Break an image")
        configs = "".join(
            f"- config_name: {name}\n  data_files: {name}.parquet\n  default: {str(name == 'few').lower()}\n"
            for name in ("few", "many")
        )
        card = f"---\nconfigs:\n{configs}---\n"
        tables = {f"{name}.parquet": parquet(folder / name, rows) for name, rows in (("few", 3), ("many", 5))}
        server.create("alice/hidden", private=True).commit("main", images, "Upload")
        server.create("alice/secret", private=True).commit("main", {"README.md": card.encode(), **tables}, "Upload")
        yield server
        assert server.unknown == []
        assert server.faults == []


def parquet(path: Path, rows: int) -> bytes:
    features = {"picture": ImageFeature(), "kind": ClassLabel(names=["old_tile", "newTile"])}
    columns = {"picture": pictures(rows), "kind": [row % 2 for row in range(rows)]}
    return table(path, columns, features).read_bytes()


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Calls a function of this module in the client process and returns or raises what it does."""
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with patch.dict(os.environ, environment):
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def read(source: str, split: str, **options: Any) -> list[tuple[tuple[int, ...], str]]:
    """A pixel and the class name of every example."""
    data = load_image_data(source, split, **options)
    names = class_names_of(data)
    return sorted((example["image"].getpixel((0, 0)), names[example["label"]]) for example in data)


def read_what_is_whole(source: str, split: str, **options: Any) -> tuple[int, list[str]]:
    """How many examples of a data set with broken images are left, and what is said of the others."""
    checked = check_images(load_image_data(source, split, **options), on_corrupt="skip")
    return len(list(checked.dataset)), checked.corrupt


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_on_the_hub(client: Run, streaming: bool) -> None:
    """At the tag all is whole; on the main branch a broken image is named by its place on the Hub or in the cache."""
    expected = sorted(
        ((*colour[:2], number), name)
        for colour, name in zip(COLOURS.values(), ["red brick", "blue Sky"], strict=True)
        for number in range(2)
    )
    assert client(read, "alice/walls", "train", revision="v1", streaming=streaming) == expected
    assert client(read, "alice/walls", "test", streaming=streaming) == expected
    with pytest.raises(CorruptImageError, match=r"red_brick/0\.png cannot" if streaming else "cannot be decoded"):
        client(read, "alice/walls", "train", streaming=streaming)
    left, corrupt = client(read_what_is_whole, "alice/walls", "train", streaming=streaming)
    assert left == 3
    assert len(corrupt) == 1
    assert "cannot be decoded: no known image format" in corrupt[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_private_configurations(client: Run, streaming: bool) -> None:
    for name, rows in ((None, 3), ("few", 3), ("many", 5)):
        found = client(read, "alice/secret", "train", name=name, token="alice-token", streaming=streaming)
        assert found == [((row, 0, 0), ["old tile", "new Tile"][row % 2]) for row in range(rows)]


@pytest.mark.parametrize(
    ("source", "options"), [("alice/none", {}), ("alice/hidden", {}), ("alice/hidden", {"token": "bob-token"})]
)
def test_what_is_not_there_or_not_allowed(client: Run, source: str, options: dict[str, str]) -> None:
    with pytest.raises(DatasetNotFoundError, match=rf"{source}.*(doesn't exist|cannot be accessed)"):
        client(read, source, "train", **options)


def test_no_other_revision_than_the_wanted_one(client: Run, hub: HubServer) -> None:
    """What the cache holds of the main branch is no answer, neither to a wrong name nor while the Hub is down."""
    assert len(client(read, "alice/walls", "test")) == 4
    with pytest.raises(FileNotFoundError, match=r"(?s)revision 'v9' of alice/walls could not .*Invalid rev id"):
        client(read, "alice/walls", "test", revision="v9")
    hub.fail("GET", r"/api/datasets/alice/walls/revision/v1", status=503)
    with pytest.raises(FileNotFoundError, match=r"(?s)revision 'v1' of alice/walls could not be downloaded.*503"):
        client(read, "alice/walls", "test", revision="v1")


def test_an_image_that_does_not_arrive_is_not_corrupt(client: Run, hub: HubServer) -> None:
    hub.fail("GET", r"test/red_brick/1\.png", status=403)
    with pytest.raises(Exception, match="403") as caught:
        client(read_what_is_whole, "alice/walls", "test", streaming=True)
    assert not isinstance(caught.value, CorruptImageError)
    assert client(read_what_is_whole, "alice/walls", "test", streaming=True) == (4, [])
