"""Images of a data set, decoded alike everywhere; errors name the file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Image as ImageFeature
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TILELENGTH, TILEWIDTH

from ..text import printable
from .jpeg import check_jpeg

try:
    from pillow_heif import register_heif_opener
except ImportError:  # it comes with an extra
    HEIF: tuple[str, ...] = ()
else:
    register_heif_opener()
    HEIF = ("HEIF",)

IMAGE, LABEL = "image", "label"
STREAM_BATCH = 16
FORMATS = ("AVIF", "BMP", "GIF", *HEIF, "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read, whatever a file's name says. Others can run programs (EPS)."""
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
MAX_PIXELS = 40 * 10**6
"""Most pixels of an image to decode; larger JPEG files are decoded at a fraction of their size."""
MAX_SIDE = 10**6
"""Longest side of an image to decode; Pillow takes memory for every row, however short."""


class CorruptImageError(ValueError):
    """An image cannot be decoded; the message names its file."""


@dataclass
class RGBImage(ImageFeature):
    """datasets' `Image(mode="RGB")`, with errors that name the file and 16-bit images scaled instead of clipped.

    A data set that is written to disk or uploaded keeps it as a plain `Image(mode="RGB")`.
    """

    mode: str | None = "RGB"

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """Return the image of a `path` or its `bytes` as [`open_image`] does.

        Raises:
            CorruptImageError: if it cannot be decoded. Failures to get the bytes keep their own error.
        """
        if not isinstance(value, dict):
            return value
        value = with_bytes(value, token_per_repo_id)
        with naming(value["path"]):
            if value["bytes"] is None and value["path"] is None:
                raise ValueError("it has neither bytes nor a path")
            return open_image(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def with_bytes(value: Mapping[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> Mapping[str, Any]:
    """Return path and bytes of an image, with the bytes read if the path is an address."""
    if value["bytes"] is not None or "://" not in (value["path"] or ""):
        return value
    feature = RGBImage(decode=False)
    storage = feature.embed_storage(pa.array([value], feature.pa_type), token_per_repo_id)
    return {"path": value["path"], "bytes": storage[0]["bytes"].as_py()}


def open_image(source: str | os.PathLike[str] | io.BytesIO) -> Image.Image:
    """Return an image as [`predict`] and training see it: upright (EXIF rotation applied) and in RGB, decoded.

    Transparency is dropped, and of 16-bit greyscale the upper 8 bits are used. Anything that classifies images with
    code of its own, transformers' pipelines included, gives the answers of [`predict`] if it opens them with this.

    Args:
        source (`str`, `Path` or `BytesIO`): a regular file, or its content; not an address (`https://...`).

    Raises:
        OSError: if there is no such file, or it is not an image of one of [`FORMATS`].
        ImportError: if it is HEIC or AVIF, and what decodes that is not installed.
        ValueError: if it is a pipe or a device, has more than [`MAX_PIXELS`] pixels, a side of more than [`MAX_SIDE`]
            or 32-bit pixels, whose range is unknown, or is a JPEG beyond the limits of [`check_jpeg`].
    """
    if isinstance(source, io.BytesIO):
        check_jpeg(source)
    else:
        kind = stat.S_IFMT(os.stat(source).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # a folder has an error of its own
            raise ValueError("it is not a regular file")
        with open(source, "rb") as file:
            check_jpeg(file)
    try:
        opened = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        _check_decoder(source, error)
        raise
    with opened as image:
        _limit(image)
        image.load()
        return upright(image)


def readable_extensions() -> frozenset[str]:
    """Return the endings of the image files that this installation can read, in lower case, with their dot."""
    Image.init()
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """Return an image as Pillow opened it with its EXIF rotation applied, in RGB."""
    if (image.format, image.mode) == ("PPM", "I"):  # Pillow has scaled it to 16 bits
        image = image.convert("I;16")
    turned = ImageOps.exif_transpose(image)
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        turned = _deep_grey(turned, getattr(image, "tag_v2", {}))
    return to_rgb(turned)


def _deep_grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return 16-bit greyscale as its TIFF means it: Pillow leaves 12 bits small, and negatives as they are."""
    values = np.asarray(image).astype(np.uint16)
    if tags.get(BITSPERSAMPLE) == (12,):
        values <<= 4
    return Image.fromarray(~values if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else values)


def _check_decoder(source: str | os.PathLike[str] | io.BytesIO, error: Exception) -> None:
    """Raise an error with its cure if a decoder that is not installed would read this image."""
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        head = file.read(12)
    brand = head[8:] if head[4:8] == b"ftyp" else b""
    if brand in HEIF_BRANDS and "HEIF" not in FORMATS:
        raise ImportError('it is a HEIC file, which needs: pip install "anprompt-peft[heic]"') from error
    if brand in AVIF_BRANDS and not features.check("avif"):
        raise ImportError("it is an AVIF file, and this Pillow was built without AVIF; install another") from error


def _limit(image: Image.Image) -> None:
    """Let a large JPEG be decoded at a fraction of its size, and raise for other large images."""
    width, height = image.size
    if max(image.size) > MAX_SIDE:
        raise ValueError(f"it has {width} x {height} pixels, and a side of more than {MAX_SIDE:,}; cut it")
    if width * height > MAX_PIXELS:
        image.draft(None, (width // 8, height // 8))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}; save it smaller")
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles may be larger than the image
    tile = tags.get(TILEWIDTH, 1), tags.get(TILELENGTH, 1)
    if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > MAX_PIXELS:
        raise ValueError(f"it has tiles of {tile[0]} x {tile[1]} pixels, more than {MAX_PIXELS:,}; save it without")


@contextmanager
def naming(path: str | None) -> Iterator[None]:
    """Name an image that cannot be decoded within the block in a `CorruptImageError`."""
    name = path or "an image without a path"
    try:
        yield
    except MemoryError as error:  # says nothing against the image
        raise MemoryError(f"{name}: too little memory to decode it") from error
    except Exception as error:  # Pillow's readers raise more than OSError on broken bytes
        if getattr(error, "errno", None) is not None:  # the bytes could not be read
            raise
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImageError(printable(f"{name} cannot be decoded: {reason}")) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB, without transparency; of 16-bit greyscale the upper 8 bits."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected an image, got {image!r}")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # newer processors would blend an RGB image with white where it has this colour
        image = image.copy()
        del image.info["transparency"]
    return image if image.mode == "RGB" else image.convert("RGB")
