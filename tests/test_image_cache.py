"""Frozen vision work cached on disk: the same results, computed once, bounded, and written atomically."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anprompt_peft.fast import ImageCache, image_cache
from helpers import LABELS, adapted, assert_exact, count_calls, make_config, trainable


def gradients(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    loss = model(pixel_values=pixels, labels=LABELS).loss
    weights = trainable(model)
    found = torch.autograd.grad(loss, list(weights.values()))
    return {"loss": loss.detach(), **dict(zip(weights, found, strict=True))}


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def model() -> Any:
    return adapted(dtype=torch.float64).train()


def test_results_are_the_same_and_the_frozen_layers_run_once_per_image(
    model: Any, pixels: Tensor, tmp_path: Path
) -> None:
    pixels = pixels.double()
    expected = gradients(model, pixels)
    model.set_image_cache(tmp_path)
    calls = count_calls(model.vision_model.encoder.layers[0])
    for batch in (pixels[:2], pixels, pixels):
        labels = LABELS[: len(batch)]
        model(pixel_values=batch, labels=labels)
    assert calls == [2, 1]
    assert len(files(tmp_path)) == 3
    for name, found in gradients(model, pixels).items():
        assert_exact(found, expected[name], name)
    assert calls == [2, 1]


def test_an_image_twice_in_a_batch(model: Any, pixels: Tensor, tmp_path: Path) -> None:
    twice = pixels.double()[[0, 0, 1]]
    expected = gradients(model, twice)
    model.set_image_cache(tmp_path)
    for _ in range(2):
        for name, found in gradients(model, twice).items():
            assert_exact(found, expected[name], name)
    assert len(files(tmp_path)) == 2


CHANGES: dict[str, Any] = {
    "image": lambda model: None,
    "dtype": lambda model: model.float(),
    "frozen weights": lambda model: torch.nn.init.ones_(model.vision_model.post_layernorm.weight),
    "first layer with prompts": lambda model: model.set_adapter("deeper"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_result_depends_on(change: str, model: Any, pixels: Tensor, tmp_path: Path) -> None:
    model.add_adapter("deeper", make_config(vision_layers=1))
    model.set_image_cache(tmp_path)
    gradients(model, pixels.double())
    CHANGES[change](model)
    pixels = pixels.to(next(model.parameters()).dtype) + (1e-3 if change == "image" else 0)
    found = gradients(model, pixels)
    assert len(files(tmp_path)) == 6
    model.set_image_cache(None)
    for name, expected in gradients(model, pixels).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_adapters_and_training_share_the_files(model: Any, pixels: Tensor, tmp_path: Path) -> None:
    model.set_image_cache(tmp_path)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1)
    for _ in range(3):
        model(pixel_values=pixels.double(), labels=LABELS).loss.backward()
        optimizer.step()
    assert len(files(tmp_path)) == 3


def test_inference_caches_nothing(model: Any, pixels: Tensor, tmp_path: Path) -> None:
    model.set_image_cache(tmp_path)
    model.eval()(pixel_values=pixels.double())
    assert not files(tmp_path)


def test_trained_vision_weights_are_refused(model: Any, pixels: Tensor, tmp_path: Path) -> None:
    model.set_image_cache(tmp_path)
    model.vision_model.embeddings.requires_grad_(True)
    with pytest.raises(ValueError, match=r"weights of it are trained.*set_image_cache\(None\)"):
        gradients(model, pixels.double())


def compute(images: Tensor) -> dict[str, Tensor]:
    return {"sum": images.flatten(1).sum(1), "first": images[:, 0]}


def fill(folder: Path, first: int) -> None:
    cache = ImageCache(folder)
    for start in range(first, first + 40, 4):
        cache.fetch(torch.arange(start, start + 4.0)[:, None, None].expand(-1, 2, 50), "", compute)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [get_context("fork").Process(target=fill, args=(tmp_path, first)) for first in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(files(tmp_path)) == 60
    images = torch.arange(60.0)[:, None, None].expand(-1, 2, 50)
    kept = ImageCache(tmp_path).fetch(images, "", lambda _: pytest.fail("all of it is there"))
    for name, expected in compute(images).items():
        assert torch.equal(kept[name], expected)


def test_a_full_folder_evicts_what_this_run_has_not_used(tmp_path: Path) -> None:
    images = torch.arange(12.0)[:, None, None].expand(-1, 2, 50)
    ImageCache(tmp_path).fetch(images[:4], "", compute)
    size = files(tmp_path)[0].stat().st_size
    cache = ImageCache(tmp_path, max_bytes=4 * size)
    paths = [cache._path(image, "") for image in images]
    for age, path in enumerate(paths[:4]):
        os.utime(path, (1000 + age, 1000 + age))
    cache.fetch(images[:1], "", compute)
    cache.fetch(images[4:6], "", compute)
    assert files(tmp_path) == sorted([paths[0], *paths[3:6]])
    with pytest.warns(UserWarning, match=f"has reached {4 * size:,} bytes"):
        found = cache.fetch(images[6:], "", compute)
    assert torch.equal(found["sum"], compute(images[6:])["sum"])
    assert files(tmp_path) == sorted([paths[0], *paths[4:7]])


def test_a_folder_is_listed_seldom_and_several_caches_stay_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(512.0)[:, None, None].expand(-1, 2, 50)
    ImageCache(tmp_path).fetch(images[:1], "", compute)
    limit = 300 * files(tmp_path)[0].stat().st_size
    listed = Mock(wraps=image_cache._files)
    monkeypatch.setattr(image_cache, "_files", listed)
    caches = [ImageCache(tmp_path, limit) for _ in range(4)]
    for image in range(256):
        caches[image % 4].fetch(images[image : image + 1], "", compute)
    assert 4 <= listed.call_count < 80
    with pytest.warns(UserWarning, match=f"has reached {limit:,} bytes"):
        caches[0].fetch(images[256:], "", compute)
    assert sum(file.stat().st_size for file in files(tmp_path)) <= limit


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:50])
        raise KeyboardInterrupt

    images = torch.zeros(1, 2, 50)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(KeyboardInterrupt):
            ImageCache(tmp_path).fetch(images, "", compute)
    assert not files(tmp_path)
    ImageCache(tmp_path).fetch(images, "", compute)
    assert len(files(tmp_path)) == 1


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def replace(file: Path, make: Callable[[Path], Any]) -> None:
    file.unlink()
    make(file)


def link_to_a_whole_file(file: Path) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    file.symlink_to(file.rename(elsewhere / file.name))


def write_header(file: Path, dtype: str) -> None:
    """A valid file of one byte, of a dtype that torch or safetensors' reader may not know."""
    shape = [2] if dtype == "F4" else [1]
    header = json.dumps({"sum": {"dtype": dtype, "shape": shape, "data_offsets": [0, 1]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")


def forge(file: Path, tensors: dict[str, Tensor]) -> None:
    """Other tensors with a checksum that fits them."""
    file.write_bytes(image_cache._pack(file, tensors))


FOREIGN: dict[str, Callable[[Path, Path], Any]] = {
    "pipe": lambda file, other: replace(file, os.mkfifo),
    "link to a whole file": lambda file, other: link_to_a_whole_file(file),
    "link to itself": lambda file, other: replace(file, lambda path: path.symlink_to(path)),
    "endless device": lambda file, other: replace(file, lambda path: path.symlink_to("/dev/zero")),
    "sparse": lambda file, other: os.truncate(file, 2**40),
    **{dtype: partial(lambda dtype, file, other: write_header(file, dtype), dtype) for dtype in ("F4", "F8_E8M0")},
    "other names": lambda file, other: forge(file, {"sum": torch.ones(()), "second": torch.ones(50)}),
    "more names": lambda file, other: forge(file, {**compute(torch.ones(1, 2, 50)), "more": torch.ones(())}),
    "no names": lambda file, other: forge(file, {}),
    "other shapes": lambda file, other: forge(file, {"sum": torch.ones(()), "first": torch.ones(1)}),
    "other dtypes": lambda file, other: forge(file, {"sum": torch.ones(()), "first": torch.ones(50).double()}),
}
DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    **FOREIGN,
    "cut": lambda file, other: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file, other: file.write_bytes(b""),
    "no file": lambda file, other: [file.unlink(), file.mkdir()],  # type: ignore[func-returns-value]
    "another image's": lambda file, other: shutil.copy(other, file),
    "something else's": lambda file, other: save_file({"sum": torch.ones(()), "first": torch.ones(50)}, file),
    "misshapen": lambda file, other: save_file({"first": torch.ones(7, 7)}, file),
    **{f"byte {at} flipped": partial(lambda at, file, other: flip(file, at), at) for at in (3, 20, -300, -100, -1)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_again(damage: str, tmp_path: Path) -> None:
    images = torch.arange(2.0)[:, None, None].expand(-1, 2, 50)
    cache = ImageCache(tmp_path)
    cache.fetch(images, "", compute)
    paths = [cache._path(image, "") for image in images]
    whole = paths[1].read_bytes()
    DAMAGE[damage](paths[1], paths[0])
    asked: list[int] = []

    def count(missing: Tensor) -> dict[str, Tensor]:
        asked.append(len(missing))
        return compute(missing)

    with warnings.catch_warnings(record=True) as caught:
        found = [ImageCache(tmp_path).fetch(images, "", count) for _ in range(2)]
    for name, expected in compute(images).items():
        assert all(torch.equal(each[name], expected) for each in found)
    if damage == "no file":  # a folder in its place cannot be replaced
        assert (asked, len(caught)) == ([1, 1], 2)
    else:
        assert (asked, len(caught)) == ([1], 0)
        assert paths[1].read_bytes() == whole


@pytest.mark.parametrize("damage", ["other names", "other shapes", "other dtypes"])
def test_without_an_outline_rows_must_agree(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process the first file read tells the names; whichever is forged, what was computed decides."""
    images = torch.arange(2.0)[:, None, None].expand(-1, 2, 50)
    for forged in (0, 1):
        ImageCache(tmp_path).fetch(images, "", compute)
        path = ImageCache(tmp_path)._path(images[forged], "")
        DAMAGE[damage](path, path)
        monkeypatch.setattr(image_cache, "_LAYOUTS", {})
        found = ImageCache(tmp_path).fetch(images, "", compute)
        assert found.keys() == compute(images).keys()
        assert all(torch.equal(found[name], expected) for name, expected in compute(images).items())


@pytest.mark.parametrize("forged", [False, True])
def test_a_new_run_knows_what_is_computed(
    forged: bool, model: Any, pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first batch on, without running a layer for it."""
    expected = gradients(model, pixels.double())
    model.set_image_cache(tmp_path)
    gradients(model, pixels.double())
    for file in files(tmp_path) if forged else ():
        row = image_cache.load(file.read_bytes())
        forge(file, {"hidden": torch.zeros_like(row["hidden"])[:2], "frozen": row["frozen"]})
    monkeypatch.setattr(image_cache, "_LAYOUTS", {})
    model.set_image_cache(tmp_path)
    calls = count_calls(model.vision_model.encoder.layers[0])
    for name, found in gradients(model, pixels.double()).items():
        assert_exact(found, expected[name], name)
    assert calls == ([3] if forged else [])


def test_files_of_other_users_are_told_once_and_never_read_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(4.0)[:, None, None].expand(-1, 2, 50)
    ImageCache(tmp_path).fetch(images[:3], "", compute)
    before = {file: file.stat().st_ino for file in files(tmp_path)}
    for file in before:
        os.utime(file, (1000, 1000))
    monkeypatch.setattr(image_cache, "_user", lambda: os.geteuid() + 1)
    cache = ImageCache(tmp_path, max_bytes=1)
    asked: list[int] = []

    def count(missing: Tensor) -> dict[str, Tensor]:
        asked.append(len(missing))
        return compute(missing)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            found = cache.fetch(images, "", count)
            assert torch.equal(found["sum"], compute(images)["sum"])
    assert asked == [4, 4]
    assert ["belongs to another user" in str(warning.message) for warning in caught] == [True, False, False]
    assert {file: file.stat().st_ino for file in files(tmp_path)} == before


def test_what_no_cache_wrote_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    name = "0" * 64 + ".safetensors"
    foreign = [
        folder / "bert" / "model.safetensors",
        folder / "ab" / "model.safetensors",
        folder / "ab" / name,  # of another shard
        elsewhere / ("cd" + name[2:]),
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(10**6))
        os.utime(file, (1000, 1000))
    (folder / "cd").symlink_to(elsewhere)
    (folder / "ef").write_text("no folder")
    (folder / "00").mkdir()
    (folder / "00" / name).symlink_to(foreign[0])
    images = torch.arange(6.0)[:, None, None].expand(-1, 2, 50)
    written = len(image_cache._pack(folder / name, {name: row[0] for name, row in compute(images).items()}))
    cache = ImageCache(folder, max_bytes=2 * written)
    assert not {cache._path(image, "").parent.name for image in images} & {"cd", "ef"}
    cache.fetch(images[:2], "", compute)
    for image in images[:2]:
        os.utime(cache._path(image, ""), (2000, 2000))
    cache.fetch(images[2:4], "", compute)
    assert [cache._path(image, "").exists() for image in images] == [False, False, True, True, False, False]
    assert all(file.stat().st_size == 10**6 for file in foreign)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    images, elsewhere = torch.zeros(1, 2, 50), tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = ImageCache(tmp_path / "cache")
    cache._path(images[0], "").parent.symlink_to(elsewhere)
    with pytest.warns(UserWarning, match=r"cannot be written to: .* is a link"):
        cache.fetch(images, "", compute)
    assert not files(elsewhere)


@pytest.mark.parametrize("which", ["shard", "folder"])
def test_folders_that_cannot_be_listed(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard is passed over; without the folder's list its size is unknown, so nothing is written."""
    images = torch.arange(2.0)[:, None, None].expand(-1, 2, 50)
    cache, scandir = ImageCache(tmp_path), os.scandir
    cache.fetch(images[:1], "", compute)
    locked = tmp_path if which == "folder" else cache._path(images[0], "").parent

    def refuse(path: Any) -> Any:
        if not isinstance(path, int) and Path(path) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with warnings.catch_warnings(record=True) as caught:
        assert torch.equal(ImageCache(tmp_path).fetch(images, "", compute)["sum"], compute(images)["sum"])
    monkeypatch.undo()
    assert (len(caught), len(files(tmp_path))) == ((1, 1) if which == "folder" else (0, 2))


def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(3.0)[:, None, None].expand(-1, 2, 50)
    cache = ImageCache(tmp_path)
    cache.fetch(images[:1], "", compute)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (images, images, images + 7):
            assert torch.equal(cache.fetch(batch, "", compute)["sum"], compute(batch)["sum"])
    assert [str(warning.message).split(": [")[0] for warning in caught] == [
        f"The image cache in {tmp_path} cannot be written to"
    ]
    assert len(files(tmp_path)) == 1
    assert torch.equal(
        cache.fetch(images[:1], "", lambda _: pytest.fail("it is there"))["sum"], compute(images[:1])["sum"]
    )


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "10GB"])
def test_wrong_size(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"max_bytes={wrong!r} must be a whole number"):
        adapted().set_image_cache(tmp_path, wrong)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("file", "file/below", "broken"):
        with pytest.raises(NotADirectoryError, match="Name a folder"):
            ImageCache(tmp_path / name)


def test_a_new_folder_is_for_its_user_only(tmp_path: Path) -> None:
    ImageCache(tmp_path / "new" / "cache")
    assert stat.S_IMODE((tmp_path / "new" / "cache").stat().st_mode) == 0o700
