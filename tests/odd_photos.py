"""A folder of photos as people have them: turned, of every mode and format, thin, nested, with odd names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anprompt_peft.data.images import readable_extensions

CLASSES = ["cat", "dog"]
TURNED = Image.Exif()
TURNED[0x0112] = 6


def make_odd_photos(folder: Path, seed: int = 0) -> list[Path]:
    """Write a sub-folder per class and return all files; HEIC and AVIF where they can be read."""
    written = []
    for name in CLASSES:
        for file, image, options in _photos(np.random.default_rng([seed, CLASSES.index(name)])):
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                image.save(path, **options)
            except OSError:
                if "\n" not in file:  # which not every file system takes
                    raise
            else:
                written.append(path)
    return written


def _photos(random: np.random.Generator) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """Names, images and how they are saved."""

    def photo(width: int = 40, height: int = 28, mode: str = "RGB") -> Image.Image:
        """A few large patches of colour, different in all corners."""
        patches = Image.fromarray(random.integers(0, 256, (4, 5, 4), np.uint8))
        return patches.resize((width, height), Image.Resampling.BICUBIC).convert(mode)

    def deep() -> Image.Image:
        return Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)

    yield "IMG_0001.JPG", photo(), {"exif": TURNED.tobytes()}
    yield "turned.png", photo(), {"exif": TURNED.tobytes()}
    yield "cmyk.jpg", photo(mode="CMYK"), {"quality": 95}
    yield "progressive.jpeg", photo(90, 61), {"progressive": True}
    yield "grey 16.png", deep(), {}
    yield "grey 16.tif", deep(), {}
    yield "grey 16.pgm", deep(), {}
    yield "clear.png", photo(mode="RGBA"), {}
    yield "clear grey.png", photo(mode="LA"), {}
    yield "clear palette.png", photo().quantize(16), {"transparency": 3}
    yield "clear shades.png", photo().quantize(16), {"transparency": bytes(range(0, 256, 16))}
    yield "clear.gif", photo().quantize(16), {"transparency": 3}
    yield "photo.webp", photo(), {"exif": TURNED.tobytes()}
    yield "thin.png", photo(3000, 1), {}
    yield "tall.png", photo(1, 3000), {}
    yield "dot.bmp", photo(1, 1), {}
    yield "2024/spring/nested.png", photo(), {}
    yield "caf\u00e9.png", photo(), {}
    yield "cafe\u0301s.png", photo(), {}
    yield "\U0001f408 on a mat.jpg", photo(), {}
    yield "two\nlines.png", photo(), {}
    for file, kind in {"IMG_0002.HEIC": "HEIF", "photo.avif": "AVIF"}.items():
        if Path(file).suffix.lower() in readable_extensions():
            yield file, photo(), {"format": kind, "exif": TURNED.tobytes()}
            yield f"clear {file}", photo(mode="RGBA"), {"format": kind}
