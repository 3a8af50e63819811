"""Decoding images of every kind, and broken ones: found by a check, or met on the way, always with their names."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import AvifImagePlugin, Image, features
from transformers import CLIPImageProcessorPil

from anprompt_peft.data import (
    CorruptImageError,
    RGBImage,
    check_images,
    class_names_of,
    images,
    jpeg,
    open_image,
    select_classes,
)
from anprompt_peft.data.images import FORMATS, readable_extensions, to_rgb, upright
from anprompt_peft.data.jpeg import check_jpeg
from pictures import assert_refused, labelled, labels

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=-1)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dataset_of(values: list[Any]) -> Dataset:
    return labelled([row % 2 for row in range(len(values))], ["left", "right"], values)


def decode(content: bytes) -> np.ndarray:
    image = dataset_of([{"bytes": content, "path": "some/where.img"}])[0]["image"]
    assert image.mode == "RGB"
    return np.asarray(image)


GREY = np.repeat(RAMP[..., None], 3, axis=-1)
PALETTE = Image.fromarray(RAMP).convert("P")
SIXTEEN = RAMP.astype(np.uint16) * 257
PAIRS = (RAMP.reshape(-1, 2).astype(np.uint32) << 4).T
TWELVE = np.stack([PAIRS[0] >> 4, (PAIRS[0] & 15) << 4 | PAIRS[1] >> 8, PAIRS[1] & 255], 1).astype(np.uint8)
HALF_CLEAR = np.concatenate([COLOURS, np.full_like(RAMP, 127)[..., None]], axis=-1)


def tiff(tags: dict[int, int], content: bytes) -> bytes:
    """A TIFF of these tags, to which the place of the content is added; Pillow does not write such ones."""
    height, width = RAMP.shape
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    place = {324 if 322 in tags else 273: 8 + 2 + 12 * (len(tags) + 1) + 4}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted((tags | place).items())]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + content


def grey_tiff(bits: int, white_is_zero: bool, values: np.ndarray) -> bytes:
    tags = {258: bits, 262: 1 - white_is_zero, 278: RAMP.shape[0], 279: values.nbytes}
    return tiff(tags, values.tobytes())


TURNED = Image.Exif()
TURNED[0x0112] = 6  # the camera was turned: the first row is the right-hand side
KINDS = {
    "rgb": (encoded(Image.fromarray(COLOURS), "PNG"), COLOURS),
    "grey": (encoded(Image.fromarray(RAMP), "PNG"), GREY),
    "turned": (encoded(Image.fromarray(COLOURS), "PNG", exif=TURNED), np.rot90(COLOURS, k=-1)),
    "palette": (encoded(PALETTE, "PNG"), GREY),
    "gif": (encoded(PALETTE, "GIF"), GREY),
    "clear palette": (encoded(PALETTE, "PNG", transparency=3), GREY),
    "grey alpha": (encoded(Image.fromarray(RAMP).convert("LA"), "PNG"), GREY),
    "alpha": (encoded(Image.fromarray(HALF_CLEAR, "RGBA"), "PNG"), COLOURS),
    "bits": (encoded(Image.fromarray(RAMP > 100), "PNG"), np.where(GREY > 100, 255, 0)),
    "cmyk": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "png16": (encoded(Image.fromarray(SIXTEEN), "PNG"), GREY),
    "tiff16": (encoded(Image.fromarray(SIXTEEN), "TIFF"), GREY),
    "pgm16": (encoded(Image.fromarray(SIXTEEN), "PPM"), GREY),
    "tiff12": (grey_tiff(12, False, TWELVE), GREY),
    "negative16": (grey_tiff(16, True, ~SIXTEEN), GREY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb(kind: str) -> None:
    content, expected = KINDS[kind]
    np.testing.assert_array_equal(decode(content), expected)
    np.testing.assert_array_equal(np.asarray(upright(Image.open(io.BytesIO(content)))), expected)


@pytest.mark.parametrize("kind", ["P", "RGB", "L"])
def test_nothing_transparent_is_left_to_blend(kind: str) -> None:
    """transformers' newer processors make a colour that a file calls transparent white, in RGB as well."""
    image = Image.fromarray(COLOURS).convert(kind)
    content = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    opened = open_image(io.BytesIO(content))
    pixels = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)(opened)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.moveaxis(pixels["pixel_values"][0], 0, -1), expected)


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pillow-heif were not installed."""
    monkeypatch.setattr(images, "FORMATS", tuple(kind for kind in FORMATS if kind != "HEIF"))


def test_the_endings_are_those_of_the_formats(request: pytest.FixtureRequest) -> None:
    """Without pillow-heif those of HEIC are not among them."""
    endings, heic = readable_extensions(), {".heic", ".heif", ".hif"}
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif"} <= endings
    assert not {".eps", ".pdf", ".svg", ".jxl", ".txt"} & endings
    assert (heic <= endings) == ("HEIF" in FORMATS)
    request.getfixturevalue("without_heif")
    assert readable_extensions() == {ending for ending in endings if not ending.startswith(tuple(heic))}


def test_heic_is_limited_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_heif")
    monkeypatch.setattr(images, "MAX_PIXELS", NOISE[..., 0].size - 1)
    content = io.BytesIO(encoded(Image.fromarray(NOISE), "HEIF"))
    assert_refused("it has 40 x 40 pixels, more than 1,599", open_image, content)


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1", "hevc"])
def test_heic_without_its_decoder_names_the_extra(brand: str, tmp_path: Path, without_heif: None) -> None:
    path, content = tmp_path / "IMG_1.HEIC", b"\0\0\0\x1cftyp" + brand.encode() + bytes(60)
    path.write_bytes(content)
    cure = 'it is a HEIC file, which needs: pip install "anprompt-peft[heic]"'
    for value in ({"path": "IMG_1.HEIC", "bytes": content}, {"path": str(path), "bytes": None}):
        with pytest.raises(CorruptImageError) as caught:
            RGBImage().decode_example(value)
        assert str(caught.value) == f"{value['path']} cannot be decoded: {cure}"
    with pytest.raises(ImportError, match="it is a HEIC file"):
        open_image(path)


def test_avif_without_its_decoder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(NOISE), "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    with pytest.warns(UserWarning, match="AVIF"), pytest.raises(ImportError, match="built without AVIF"):
        open_image(io.BytesIO(content))


def test_cmyk_jpeg() -> None:
    """JPEG loses a little; inverted inks would be off by a lot."""
    content = encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content).astype(int) - COLOURS).mean() < 8


@pytest.mark.parametrize("pixels", [RAMP.astype(np.int32), RAMP.astype(np.float32)], ids=["int32", "float32"])
def test_pixels_of_unknown_range_are_refused(pixels: np.ndarray) -> None:
    """Pillow would clip them to 0..255, whatever they mean."""
    with pytest.raises(CorruptImageError, match=r"some/where\.img cannot be decoded: pixels of mode '[IF]' have no"):
        decode(encoded(Image.fromarray(pixels), "TIFF"))
    assert_refused("expected an image, got None", to_rgb, None)


def resized_header(content: bytes, width: int, height: int) -> bytes:
    """Let a JPEG's frame say that it is larger: what is missing is decoded as grey."""
    at = max(content.find(marker) for marker in (b"\xff\xc0\x00", b"\xff\xc2\x00")) + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def with_scans(content: bytes, number: int) -> bytes:
    """Repeat the last scan of a JPEG until there are so many."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (number - content.count(b"\xff\xda")) + content[-2:]


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SMALL = Image.fromarray(COLOURS)
PROGRESSIVE = encoded(SMALL, "JPEG", progressive=True)
SEQUENTIAL = encoded(SMALL, "JPEG")
JUNK = b"\xff\xd8" + b"\xff" * 200_000
COMMENT = b"\xff\xfe\x00\x04hi"
TILED = tiff({322: 40_000, 323: 1001, 259: 8, 325: 8}, zlib.compress(b""))  # one tile, larger than the image


def non_interleaved(width: int, height: int) -> bytes:
    """A sequential JPEG of three components whose first scan has one of them."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(bytes([each, 0x11, 0]) for each in (1, 2, 3))
    return b"\xff\xd8\xff\xc0\x00\x11" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9"


COSTLY = {
    "pixels": (resized_header(PROGRESSIVE, 13_000, 13_000), "is a progressive JPEG of 13000 x 13000 .* takes 507 MB"),
    "not interleaved": (
        non_interleaved(9000, 9000),
        "is a progressive JPEG of 9000 x 9000 pixels, which takes 486 MB",
    ),
    "scans": (with_scans(PROGRESSIVE, 65), "has more than 64 scans"),
    "hidden scan": (
        with_scans(PROGRESSIVE, 64)[:-2] + b"\xff\x05\xff\xff\xff\xd0\xff\xff\xda\xff\xd9",
        "has more than 64 scans",
    ),
    "header": (SEQUENTIAL[:2] + COMMENT * 2000 + SEQUENTIAL[2:], "has more than 2,000 segments"),
    "between scans": (PROGRESSIVE[:-2] + COMMENT * 2000 + PROGRESSIVE[-2:], "has more than 2,000 segments"),
    "tall": (png_header(1, 1_000_001), "has 1 x 1000001 pixels, and a side of more than 1,000,000"),
    "wide": (png_header(1_000_001, 1), "has 1000001 x 1 pixels, and a side of more than 1,000,000"),
    "tile": (
        tiff({322: 40_000, 323: 1001, 259: 8, 325: 8}, zlib.compress(b"")),
        "has tiles of 40000 x 1001 pixels, more than 40,000,000",
    ),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_few_bytes_that_take_much_memory_or_time_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, from a file and from memory, and before anything is decoded."""
    content, message = COSTLY[kind]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    (tmp_path / "few.img").write_bytes(content)
    for value in ({"path": str(tmp_path / "few.img"), "bytes": None}, {"path": "few.img", "bytes": content}):
        with pytest.raises(CorruptImageError, match=rf"few\.img cannot be decoded: it {message}"):
            RGBImage().decode_example(value)


def test_what_photographs_have_is_within_the_limits() -> None:
    """A large profile, a thumbnail of many scans, 64 scans, 50 million pixels, data after the end."""
    exif = b"\xff\xe1" + struct.pack(">H", 8 + len(with_scans(PROGRESSIVE, 70))) + b"Exif\0\0"
    whole = with_scans(PROGRESSIVE, 64)
    content = whole[:2] + exif + with_scans(PROGRESSIVE, 70) + whole[2:] + b"\xff\xda" * 100
    np.testing.assert_array_equal(np.asarray(open_image(io.BytesIO(content))), Image.open(io.BytesIO(whole)))
    profile = encoded(SMALL, "JPEG", icc_profile=bytes(255 * 65_000), progressive=True)
    np.testing.assert_array_equal(np.asarray(open_image(io.BytesIO(profile))), decode(PROGRESSIVE))
    check_jpeg(io.BytesIO(resized_header(PROGRESSIVE, 8165, 6124)))


@pytest.mark.parametrize("filling", range(jpeg._BLOCK - 4, jpeg._BLOCK + 2))
def test_markers_are_found_wherever_blocks_end(filling: int) -> None:
    content = PROGRESSIVE[:-2] + bytes(filling) + with_scans(PROGRESSIVE, 65)[len(PROGRESSIVE) - 2 :]
    assert_refused("more than 64 scans", check_jpeg, io.BytesIO(content))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", SEQUENTIAL[:200], non_interleaved(0, 0)[:15], JUNK])
def test_broken_markers_are_left_to_the_decoder(content: bytes) -> None:
    check_jpeg(io.BytesIO(content))
    with pytest.raises(CorruptImageError, match=r"some/where\.img cannot be decoded"):
        decode(content)


def test_too_little_memory_is_named_and_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", fail)
    for on_corrupt in ("raise", "skip"):
        with pytest.raises(MemoryError, match=r"^some/where\.img: too little memory to decode it$"):
            check_images(dataset_of([{"bytes": PROGRESSIVE, "path": "some/where.img"}]), on_corrupt=on_corrupt)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
JPEG = encoded(Image.fromarray(NOISE), "JPEG")
PNG = encoded(Image.fromarray(NOISE), "PNG")
BROKEN = {
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "truncated.png": PNG[: len(PNG) // 2],
    "header.png": PNG[:20],
    "zero.jpg": b"",
    "text.jpg": b"this is no image",
    "scrambled.png": PNG[:60] + bytes(200) + PNG[260:],
}


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    """Good images between broken ones of every kind."""
    files = []
    for at, (name, content) in enumerate(BROKEN.items()):
        Image.fromarray(NOISE + np.uint8(at)).save(tmp_path / f"good{at}.png")
        (tmp_path / name).write_bytes(content)
        files += [f"good{at}.png", name]
    return dataset_of([str(tmp_path / name) for name in files])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_named_on_access(mixed: Dataset, tmp_path: Path, name: str) -> None:
    row = 1 + 2 * list(BROKEN).index(name)
    message = f"{tmp_path}/{name} cannot be decoded: "
    ways = {
        "row": lambda data: data[row],
        "slice": lambda data: data[row : row + 1]["image"],
        "stream": lambda data: list(data.to_iterable_dataset().skip(row)),
        "transform": lambda data: data.with_transform(lambda batch: batch)[row],
        "map": lambda data: data.map(lambda image: {"width": image.width}, input_columns="image"),
        "pickle": lambda data: pickle.loads(pickle.dumps(data))[row],
        "drawn": lambda data: data.select([row]).flatten_indices()[0],
        "shuffled": lambda data: list(data.select([row]).shuffle(seed=0)),
        "relabelled": lambda data: select_classes(data, ["right"])[row // 2],
    }
    for way, access in ways.items():
        data = mixed.select([*range(0, 2 * len(BROKEN), 2), row]) if way == "map" else mixed
        with pytest.raises(CorruptImageError) as caught:
            access(data)
        assert str(caught.value).startswith(message), way
        assert "BytesIO" not in str(caught.value)


def test_all_broken_images_are_listed(mixed: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError) as caught:
        check_images(mixed)
    first, *lines = str(caught.value).splitlines()
    assert first == "6 of 12 images are corrupt:"
    for at, (name, line) in enumerate(zip(BROKEN, lines, strict=True)):
        assert line.startswith(f"row {2 * at + 1}: {tmp_path}/{name} cannot be decoded: ")


def assert_good_ones(dataset: Any) -> None:
    """Check that exactly the good images of the fixture are left."""
    examples = list(dataset)
    assert [example["label"] for example in examples] == [0] * len(BROKEN)
    for at, example in enumerate(examples):
        np.testing.assert_array_equal(np.asarray(example["image"]), NOISE + np.uint8(at))


def test_broken_images_are_left_out_and_counted(mixed: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    checked = check_images(mixed, on_corrupt="skip")
    assert len(checked.corrupt) == len(BROKEN) == len(caplog.records)
    assert checked.dataset.features == mixed.features
    assert labels(checked.dataset) == [0] * 6
    assert_good_ones(checked.dataset)
    whole = check_images(checked.dataset)
    assert (whole.dataset, whole.corrupt) == (checked.dataset, [])
    assert_refused("on_corrupt='ignore' must be 'raise' or 'skip'", check_images, mixed, on_corrupt="ignore")


def test_images_without_a_path_are_named_by_row() -> None:
    data = dataset_of([{"bytes": PNG, "path": None}, {"bytes": b"", "path": None}, None])
    checked = check_images(data, on_corrupt="skip")
    assert checked.corrupt == [
        "row 1: an image without a path cannot be decoded: no known image format",
        "row 2: there is no image",
    ]
    assert len(checked.dataset) == 1


def test_a_missing_file_is_not_a_corrupt_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        check_images(dataset_of([str(tmp_path / "gone.png")]), on_corrupt="skip")


def streams(data: Dataset) -> dict[str, IterableDataset]:
    """A stream of Arrow tables, as from parquet, and one of examples, as from a folder or the Hub."""
    raw = [dict(example) for example in data.cast_column("image", RGBImage(decode=False))]
    generated = IterableDataset.from_generator(lambda: iter(raw), features=data.features)
    return {"tables": data.to_iterable_dataset(), "examples": generated, "decoded by threads": generated.decode()}


@pytest.mark.parametrize("kind", ["tables", "examples", "decoded by threads"])
def test_streams_are_checked_while_they_are_read(mixed: Dataset, tmp_path: Path, kind: str) -> None:
    checked = check_images(streams(mixed)[kind], on_corrupt="skip")
    assert checked.corrupt == []
    assert class_names_of(checked.dataset) == ["left", "right"]
    assert_good_ones(checked.dataset)
    assert [line.split(" cannot")[0] for line in checked.corrupt] == [
        f"row {2 * at + 1}: {tmp_path}/{name}" for at, name in enumerate(BROKEN)
    ]
    with pytest.raises(CorruptImageError, match=r"row 1: .*/truncated\.jpg cannot be decoded"):
        list(check_images(streams(mixed)[kind]).dataset)


def test_a_checked_stream_goes_on_being_counted(mixed: Dataset) -> None:
    """Shuffling, taking and mapping what was checked keep the count in view."""
    checked = check_images(streams(mixed)["examples"], on_corrupt="skip")
    later = checked.dataset.shuffle(seed=0, buffer_size=3).map(
        lambda image: {"width": image.width}, input_columns="image"
    )
    assert [example["width"] for example in later] == [40] * len(BROKEN)
    assert len(checked.corrupt) == len(BROKEN)


def test_a_failing_network_is_not_a_corrupt_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out broken images must not leave out those that did not arrive."""
    far = MemoryFileSystem()
    far.pipe("/good.png", PNG)
    far.pipe("/broken.jpg", BROKEN["truncated.jpg"])
    found = dataset_of(["memory://good.png", "memory://broken.jpg"])
    checked = check_images(found, on_corrupt="skip")
    assert [line.split(" cannot")[0] for line in checked.corrupt] == ["row 1: memory://broken.jpg"]
    np.testing.assert_array_equal(np.asarray(checked.dataset[0]["image"]), NOISE)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection reset")

    monkeypatch.setattr(MemoryFileSystem, "_open", fail)
    with pytest.raises(ConnectionError, match="connection reset"):
        check_images(found, on_corrupt="skip")
