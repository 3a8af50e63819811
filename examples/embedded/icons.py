"""Icons of six designers, read from the fonts and name tables that the package QtAwesome ships.

Nothing of QtAwesome is imported (that would need Qt): its files are found and read. A glyph's name without its style
("bell-ring-outline", "bell-ring-fill") is a concept; `synonyms.txt` says which names stand for the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from anprompt_peft.extras import missing

SIZE = 32  # pixels, side of a finished icon
MARGIN = 2  # pixels left free around it
PEN = 128  # points, the size that a glyph is drawn in before it is scaled down
STYLES = ("alt", "filled", "outline", "variant")
SHAPES = {"circle": "circle", "square": "square", "box": "square"}  # stand last in a concept
CHARACTERS = frozenset(("alpha", "numeric", "roman"))  # glyphs that are letters or numerals: no icons
LEAST_GLYPHS = (5, 2)  # of a shared concept, in each unseen family: all weights, line and fill


@dataclass(frozen=True)
class Family:
    """One designer's icons, as `families.yaml` describes them."""

    name: str
    fonts: tuple[str, ...]
    styles: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]


def _families(entries: dict[str, dict[str, Any]]) -> tuple[Family, ...]:
    return tuple(
        Family(name, tuple(each["fonts"]), tuple(each.get("styles", STYLES)), tuple(each.get("renamed", {}).items()))
        for name, each in entries.items()
    )


_RECORD = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text())
PRETRAINING, UNSEEN = _families(_RECORD["pretraining"]), _families(_RECORD["unseen"])
(PHOSPHOR, REMIX), (BRANDS,) = UNSEEN, _families(_RECORD["brands"])
WORDS: dict[str, str] = _RECORD["words"]


@dataclass(frozen=True)
class Glyph:
    """One glyph: the family and font it stands in, its code point there, its name without style, and its concept."""

    family: str
    font: str
    code: int
    name: str
    concept: str


def fonts_folder() -> Path:
    """Where QtAwesome's fonts are."""
    found = find_spec("qtawesome")
    if found is None or not found.submodule_search_locations:
        raise ImportError(missing("QtAwesome", "embedded"))
    return Path(found.submodule_search_locations[0]) / "fonts"


def without_style(name: str, styles: Iterable[str]) -> str:
    """A glyph's name in words, without the last ones that say how it is drawn; "format bold" keeps its "bold"."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in styles and words[-2] not in ("format", "h", "number"):
        words.pop()
    return " ".join(words)


@cache
def written_synonyms() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Other names of each concept in `synonyms.txt`: those for captions, and those that no caption uses."""
    seen, held_out = {}, {}
    for line in (Path(__file__).parent / "synonyms.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        concept, names = line.split(" = ")
        first, _, second = names.partition(" | ")
        seen[concept], held_out[concept] = tuple(first.split(", ")), tuple(filter(None, second.split(", ")))
    every = [name for concept in seen for name in (concept, *seen[concept], *held_out[concept])]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise ValueError(f"synonyms.txt uses these names more than once: {', '.join(twice)}")
    return seen, held_out


@cache
def concept_names() -> dict[str, str]:
    """The concept of each name in `synonyms.txt`."""
    seen, held_out = written_synonyms()
    return {name: concept for concept in seen for name in (concept, *seen[concept], *held_out[concept])}


def concept_of(name: str) -> str:
    """The concept that a name without style stands for."""
    if name in concept_names():
        return concept_names()[name]
    words = name.split()
    if len(words) > 1:
        words = [WORDS.get(word, word) for word in words]
        words = [word for word in words if word not in SHAPES] + [SHAPES[word] for word in words if word in SHAPES]
    ordered = " ".join(words)
    return concept_names().get(ordered, ordered)


def name_of(key: str, family: Family) -> str:
    """The name without style of a glyph, by its key in the family's table, in the words of the other families."""
    renamed = dict(family.renamed)
    whole = key.removesuffix("-line").removesuffix("-fill").replace("-", " ")
    name = renamed.get(whole, without_style(key, family.styles))
    return renamed.get(name, name)


def is_character(name: str) -> bool:
    """Whether a glyph is a letter or a numeral and no icon."""
    return name.split()[0] in CHARACTERS or (len(name) == 1 and name != "x") or name.isdigit()


@cache
def glyphs(family: Family) -> tuple[Glyph, ...]:
    """A family's glyphs in the order of their tables, each code point of a font once."""
    found: dict[tuple[str, int], Glyph] = {}
    for font in family.fonts:
        stem, _, version = font.rpartition("-")
        table = json.loads((fonts_folder() / f"{stem}-charmap-{version}.json").read_text())
        for key, code in table.items():
            name = name_of(key, family)
            if is_character(name):
                continue
            found.setdefault((font, int(code, 16)), Glyph(family.name, font, int(code, 16), name, concept_of(name)))
    return tuple(found.values())


@cache
def brands() -> frozenset[str]:
    """Names of trade marks, which are left out of the shared concepts."""
    return frozenset(glyph.concept for glyph in glyphs(BRANDS))


@cache
def shared_concepts() -> tuple[str, ...]:
    """Concepts that the pre-training's families have, and both unseen ones often enough; sorted, without brands."""
    drawn = {glyph.concept for family in PRETRAINING for glyph in glyphs(family)}
    for family, least in zip(UNSEEN, LEAST_GLYPHS, strict=True):
        counts = Counter(glyph.concept for glyph in glyphs(family))
        drawn &= {concept for concept, count in counts.items() if count >= least}
    return tuple(sorted(drawn - brands()))


def is_development(concept: str) -> bool:
    """Whether choices are made on this concept, one of three; no reported figure is. A hash decides."""
    return hashlib.sha256(concept.encode()).digest()[0] % 3 == 0


def development_concepts() -> tuple[str, ...]:
    """The shared concepts that choices are made on."""
    return tuple(concept for concept in shared_concepts() if is_development(concept))


def report_concepts() -> tuple[str, ...]:
    """The shared concepts that reported figures are about."""
    return tuple(concept for concept in shared_concepts() if not is_development(concept))


@cache
def caption_names() -> dict[str, tuple[str, ...]]:
    """Names that captions may use for a concept: its own, those of the families, and those before the bar."""
    seen, held_out = written_synonyms()
    names: dict[str, dict[str, None]] = {}
    for glyph in (glyph for family in PRETRAINING for glyph in glyphs(family)):
        own = names.setdefault(glyph.concept, {glyph.concept: None, **dict.fromkeys(seen.get(glyph.concept, ()))})
        own.setdefault(glyph.name)
    return {
        concept: tuple(name for name in own if name not in held_out.get(concept, ())) for concept, own in names.items()
    }


def unseen_names() -> dict[str, tuple[str, ...]]:
    """Names of each shared concept that no caption uses: those behind the bar, and the unseen families' own."""
    held_out = written_synonyms()[1]
    names = {concept: dict.fromkeys(held_out.get(concept, ())) for concept in shared_concepts()}
    for glyph in (glyph for family in UNSEEN for glyph in glyphs(family)):
        if glyph.concept in names:
            names[glyph.concept].setdefault(glyph.name)
    return {
        concept: tuple(name for name in own if name not in caption_names()[concept]) for concept, own in names.items()
    }


@cache
def face_of(font: str) -> ImageFont.FreeTypeFont:
    """A font, ready to draw with."""
    return ImageFont.truetype(str(fonts_folder() / f"{font}.ttf"), PEN)


def draw_glyph(glyph: Glyph, size: int = SIZE, margin: int = MARGIN) -> np.ndarray:
    """A glyph in white on black, centred, its longer side as long as the margin allows: uint8 [size, size]."""
    page = Image.new("L", (4 * PEN, 4 * PEN))
    ImageDraw.Draw(page).text((PEN, PEN), chr(glyph.code), font=face_of(glyph.font), fill=255)
    box = page.getbbox()
    if box is None:
        raise ValueError(f"{glyph.font} draws nothing for {glyph.name!r}")
    crop = page.crop(box)
    scale = (size - 2 * margin) / max(crop.size)
    width, height = (max(1, round(side * scale)) for side in crop.size)
    canvas = Image.new("L", (size, size))
    canvas.paste(crop.resize((width, height), Image.Resampling.BOX), ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas)


def is_drawn(glyph: Glyph) -> bool:
    """Whether the font draws anything for the glyph."""
    return face_of(glyph.font).getmask(chr(glyph.code)).getbbox() is not None


def images_of(family: Family, concepts: Iterable[str]) -> tuple[list[Image.Image], np.ndarray]:
    """A family's glyphs of some concepts: n RGB images, white on black, and int64 labels [n], places in `concepts`."""
    position = {concept: i for i, concept in enumerate(concepts)}
    kept = [glyph for glyph in glyphs(family) if glyph.concept in position and is_drawn(glyph)]
    images = [Image.fromarray(draw_glyph(glyph)).convert("RGB") for glyph in kept]
    return images, np.array([position[glyph.concept] for glyph in kept], dtype=np.int64)
