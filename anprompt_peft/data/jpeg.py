"""Limits of JPEG files, read off their markers: libjpeg itself has none on what several scans cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

MAX_COEFFICIENT_BYTES = 320 * 10**6
"""Of 40 million pixels with four full components; all of them are in memory until the last of several scans."""
MAX_SCANS = 64
"""Encoders write 8 to 13."""
MAX_SEGMENTS = 2000
"""A colour profile has up to 255, and Pillow's time grows with the square of the number."""

_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_END, _SCAN = 0xD9, 0xDA
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BLOCK = 2**16


def check_jpeg(file: BinaryIO) -> None:
    """Raise `ValueError` if the markers of a JPEG file, up to a single scan's, say that it would cost too much."""
    file.seek(0)
    if file.read(3) != b"\xff\xd8\xff":
        return
    kind, frame, scans = 0, b"", 0
    for number, (marker, content) in enumerate(_segments(file), start=1):
        if number > MAX_SEGMENTS:
            raise ValueError(f"it has more than {MAX_SEGMENTS:,} segments; save it again")
        if marker in _FRAMES and not frame:
            kind, frame = marker, content
        if marker != _SCAN:
            continue
        scans += 1
        if scans == 1:
            if len(frame) < 6 or (kind not in _PROGRESSIVE and content[:1] >= frame[5:6]):
                return  # not valid, or decoded row by row
            _limit_coefficients(frame)
        if scans > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans; save it again")


def _limit_coefficients(frame: bytes) -> None:
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    sampling = [(each >> 4, each & 15) for each in frame[7::3]] or [(1, 1)]
    full = max(across for across, _ in sampling) * max(down for _, down in sampling) or 1
    size = 2 * width * height * sum(across * down for across, down in sampling) // full
    if size > MAX_COEFFICIENT_BYTES:
        raise ValueError(
            f"it is a progressive JPEG of {width} x {height} pixels, which takes {size / 10**6:,.0f} MB to decode, "
            f"more than {MAX_COEFFICIENT_BYTES // 10**6}; save it smaller or not progressive"
        )


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give marker and content of every segment, as libjpeg finds them: it passes over all bytes in between."""
    at = 2
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        found = _MARKER.search(block)
        if found is None:
            if len(block) < _BLOCK:
                return
            at += _BLOCK - 1  # its last byte may begin a marker
            continue
        marker = found[1][0]
        if marker == _END:
            return
        at += found.end()
        file.seek(at)
        length = max(int.from_bytes(file.read(2), "big"), 2)
        yield marker, file.read(length - 2)
        at += length
