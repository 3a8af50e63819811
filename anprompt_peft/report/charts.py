"""The report's charts: drawn by matplotlib, as inline SVG in the colours and the font of the page."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from threading import Lock
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox, IdentityTransform

from ..evaluation.grid import Difference, Ranking
from ..evaluation.robustness import Curve, Robustness
from ..text import printable
from .data import LossTable, Plane

INKS = ("text", "soft", "line", "card", "c0", "c1", "c2", "c3", "c4", "c5", "c6")  # variables of style.css
INK = {name: f"#0000{number:02x}" for number, name in enumerate(INKS, start=1)}  # what matplotlib takes for them
COLOURS, SHAPES = 6, (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"))
FONT = 12
STYLE: dict[str, Any] = {
    "font.size": FONT,
    "text.color": INK["text"],
    "text.parse_math": False,
    "svg.fonttype": "none",
    "path.simplify": False,
    "axes.axisbelow": True,
    "axes.labelcolor": INK["soft"],
    "grid.color": INK["line"],
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.color": INK["soft"] for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"{axis}tick.major.pad": 7 for axis in "xy"},
}
DECADES = 4
MARKED, LABELLED, LONGEST = 40, 30, 150
SIDES = (("left", 0, 9, 0), ("right", 1, -9, 0), ("center", 0.5, 0, 13), ("center", 0.5, 0, -13))  # of a mark
DASHED = (0, (3, 2.2))
RANKING_NOTE = (
    "filled: the best, and all that are not told apart from it; dashed: zero-shot CLIP; lines: 95 % intervals of the "
    "difference from it"
)
Places = Sequence[tuple[float, float]] | np.ndarray
_one_at_a_time = Lock()  # matplotlib's style is the process's


class Look(NamedTuple):
    """How a line or a mark is drawn: a variable of the page, a character for the legend, and matplotlib's settings."""

    colour: str
    sign: str
    mark: dict[str, Any]


KINDS = {
    "perturbed": Look("c3", "✕", {"marker": "x", "markersize": 7, "markeredgewidth": 1.5}),
    "clean": Look("c1", "○", {"marker": "o", "markersize": 9, "markeredgewidth": 1.6, "fillstyle": "none"}),
    "prompted": Look("c1", "●", {"marker": "o", "markersize": 10, "markeredgecolor": INK["card"]}),
    "noise prompt": Look("c2", "◇", {"marker": "D", "markersize": 12, "markeredgewidth": 2.5, "fillstyle": "none"}),
}
MEANINGS = {"clean": "frozen CLIP (clean)", "prompted": "adapted (prompted)", "perturbed": "perturbed text"}


def look(number: int) -> Look:
    """Return the look of line `number`; the first 25 differ."""
    turn, colour = divmod(number - 1, COLOURS) if number else (0, -1)
    marker, sign = SHAPES[turn % len(SHAPES)]
    return Look(f"c{colour + 1}", sign, {"marker": marker, "markersize": 6, "markeredgewidth": 0})


def loss_scale(losses: LossTable) -> tuple[float, float]:
    """Return the ends of the scale of a loss chart, which spans at most four powers of ten."""
    values = [value for name in losses.columns for value in losses.values(name)]
    positive = [value for value in values if 0 < value < math.inf] or [1.0]
    return max(min(positive), max(positive) / 10**DECADES), max(positive)


def loss_chart(losses: LossTable) -> str:
    """Draw losses on a logarithmic scale: smaller values at its lower end, and none that are not finite."""
    low, high = loss_scale(losses)
    first, last = min(losses.rows[0][losses.time], 0), losses.rows[-1][losses.time]

    def draw(axes: Axes) -> None:
        for name, term in reversed(losses.columns.items()):
            number = losses.terms.index(term)
            points = [(row[losses.time], row[name]) for row in losses.rows if math.isfinite(row.get(name, math.nan))]
            titles = [f"{name} {value:.4g} at {losses.time} {at:g}" for at, value in points]
            line = {"linestyle": "-" if name == term else DASHED, "linewidth": 1.8 if number else 3}
            places = [(at, max(value, low)) for at, value in points]
            _plot(axes, places, titles if len(points) <= MARKED else [], look(number), **line)
        margin = 0.04 * math.log10(high / low) or 0.5
        factors = (1, 2, 5) if high < 100 * low else (1,)
        axes.set(
            yscale="log",
            ylim=(low * 10**-margin, high * 10**margin),
            xlim=(first, last if last > first else first + 1),
        )
        axes.yaxis.set_major_locator(_ticks(6) if high < 10 * low else LogLocator(subs=factors))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.xaxis.set_major_locator(_ticks(8))
        axes.set_xlabel(losses.time, loc="right")
        axes.grid(axis="y")

    return _picture("Loss terms over time; the numbers are in the table below", 400, 290, draw)


def feature_chart(class_names: Sequence[str], plane: Plane) -> str:
    """Draw a plane with the same scale on both axes, and the names of few classes where they cover no other name."""
    width, margin, lowest, highest = 400, 44, 220, 360
    points = np.concatenate(list(plane.points.values()))
    middle, spread = (points.max(axis=0) + points.min(axis=0)) / 2, np.maximum(np.ptp(points, axis=0), 1e-12)
    unit = np.min((np.array([width, highest]) - 2 * margin) / spread)
    height = round(max(lowest, spread[1] * unit + 2 * margin))
    few = len(class_names) <= LABELLED

    def draw(axes: Axes) -> None:
        axes.set_position((0, 0, 1, 1))
        (left, low), (right, high) = (middle + side * np.array([width, height]) / unit / 2 for side in (-1, 1))
        axes.set(xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
        moves = np.stack([plane.points["clean"], plane.points["prompted"]])
        axes.plot(*np.moveaxis(moves, 2, 0), color=INK["soft"], linewidth=1, alpha=0.6)
        for kind, places in plane.points.items():
            size = KINDS[kind].mark["markersize"] * (1 if few or kind == "noise prompt" else 0.6)
            _plot(axes, places, plane.titles(class_names, kind), KINDS[kind], linestyle="", markersize=size)
        if few:
            _name_points(axes, class_names, {kind: axes.transData.transform(at) for kind, at in plane.points.items()})
        axes.text(0.985, 0.02, "first component →", transform=axes.transAxes, ha="right", color=INK["soft"])
        axes.text(0.015, 0.98, "↑ second", transform=axes.transAxes, va="top", color=INK["soft"])

    label = "Text features of the classes before and after adapting, and the noise prompts; "
    return _picture(f"{label}the numbers are in the table below", width, height, draw)


def robustness_charts(robustness: Robustness) -> list[tuple[list[Curve], str]]:
    """Draw the curves of each family of perturbations; all charts of a part have the same scale of accuracy."""
    seen = [value for curve in robustness.curves for level in curve.levels for value in (level.accuracy, level.worst)]
    limits = max(0.0, min(seen) - 2), min(100.0, max(seen) + 2)
    families = [list(curves) for _, curves in groupby(robustness.curves, key=lambda curve: curve.family)]
    return [(curves, _robustness_chart(robustness.part, curves, limits)) for curves in families]


def _robustness_chart(part: str, curves: Sequence[Curve], limits: tuple[float, float]) -> str:
    strengths = [level.strength for level in curves[0].levels]

    def draw(axes: Axes) -> None:
        for number, curve in enumerate(curves):
            aside = 0.01 * strengths[-1] * (number - (len(curves) - 1) / 2)
            titles = []
            for at, mean, worst in ((level.strength, level.accuracy, level.worst) for level in curve.levels):
                axes.plot([at + aside] * 2, [worst, mean], color=INK[look(number).colour], linewidth=1)
                titles.append(f"{curve.method}, {curve.family} {at:g}: {mean:.1f} %, worst draw: {worst:.1f} %")
            places = [(level.strength, level.accuracy) for level in curve.levels]
            _plot(axes, places, titles, look(number), linestyle="-" if number else DASHED, linewidth=1.8)
        axes.set(xlim=(0, strengths[-1]), ylim=limits, xticks=strengths)
        axes.set_xlabel(curves[0].unit, loc="right")
        axes.yaxis.set_major_locator(_ticks(5))
        axes.grid(axis="y")

    label = f"Accuracy over {curves[0].family}, {part}; the numbers are in the table below"
    return _picture(label, 320, 220, draw)


def difference_limits(differences: Iterable[Difference]) -> tuple[float, float]:
    """Return a range that holds all intervals and 0, a little widened."""
    ends = [0.0, *(end for each in differences for end in (each.low, each.value, each.high) if end is not None)]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def difference_chart(title: str, differences: Mapping[str, Difference], limits: tuple[float, float]) -> str:
    """Draw the differences of methods from a reference, with their intervals."""

    def draw(axes: Axes) -> None:
        for at, (method, each) in enumerate(differences.items()):
            told = f"{method} {each.value:+.2f}"
            if each.low is not None and each.high is not None:
                axes.plot([each.low, each.high], [at, at], color=INK["c1"], linewidth=1.8)
                told += f" [{each.low:+.2f}, {each.high:+.2f}]"
            _plot(axes, [(each.value, at)], [told], look(1), linestyle="", markersize=8)
        axes.axvline(0, color=INK["c0"], linewidth=1)
        axes.set(xlim=limits, ylim=(len(differences) - 0.5, -0.5))
        axes.set_yticks(range(len(differences)), [*map(_short, differences)])
        axes.xaxis.set_major_locator(_ticks(5 if limits[1] - limits[0] > 5 else 4))  # small numbers are longer
        axes.grid(axis="x")

    return _picture(f"Differences, {title}; the numbers are in the table below", 360, 40 + 22 * len(differences), draw)


def ranking_chart(label: str, rankings: Sequence[Ranking]) -> str:
    """Draw the accuracy of methods, sorted by the first ranking, with intervals of what they gain over zero-shot CLIP.

    Zero-shot CLIP is a vertical line. Marks of the best, and of all that are not told apart from it, are filled.
    """
    names = [each.method for each in rankings[0].methods]

    def draw(axes: Axes) -> None:
        for number, ranking in enumerate(rankings):
            kind = look(number + 1)
            if ranking.zero_shot is not None:
                axes.axvline(ranking.zero_shot, color=INK[kind.colour], linewidth=1, linestyle=DASHED)
            for each in (each for each in ranking.methods if each.method in names):
                at, told = names.index(each.method), f"{each.method} {each.value:.1f} %"
                if each.gain and each.gain.low is not None and each.gain.high is not None:
                    ends = np.clip(each.value - each.gain.value + np.array([each.gain.low, each.gain.high]), 0, 100)
                    axes.plot(ends, [at, at], color=INK[kind.colour], linewidth=1.8)
                    told += f", {each.gain.value:+.1f} [{each.gain.low:+.1f}, {each.gain.high:+.1f}]"
                fill = kind.colour if each.leads else "card"
                mark = {"markersize": 8, "markeredgewidth": 1.8, "markerfacecolor": INK[fill]}
                _plot(axes, [(each.value, at)], [told], kind, linestyle="", **mark)
        axes.set(ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), [*map(_short, names)])
        axes.xaxis.set_major_locator(_ticks(4))
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.grid(axis="x")

    return _picture(f"{label}; the numbers are in the tables below", 360, 40 + 24 * len(names), draw)


def poster(pictures: Mapping[str, str], legend: Sequence[str], colours: str) -> str:
    """Return charts beside each other as one SVG file, each below its heading, above what their lines are called.

    `colours` is a style sheet.
    """
    parts, left, height = [], 0.0, 0.0
    for heading, picture in pictures.items():
        _, _, width, tall = (float(each) for each in ElementTree.fromstring(picture).attrib["viewBox"].split())
        parts.append(f'<text x="{left + 8}" y="20" font-weight="bold">{escape(heading)}</text>')
        parts.append(picture.replace("<svg ", f'<svg x="{left}" y="28" width="{width}" height="{tall}" ', 1))
        left, height = left + width + 12, max(height, tall + 28)
    spans = [
        f'<tspan fill="var(--{look(at).colour})">{look(at).sign} {escape(name)}</tspan> &#160; '
        for at, name in enumerate(legend, 1)
    ]
    for line in ("".join(spans), *RANKING_NOTE.split("; ")):
        height += 20
        parts.append(f'<text x="8" y="{height}">{line}</text>')
    look_of = (
        f"<style>{colours} svg {{ font: {FONT}px sans-serif; background: var(--card); fill: var(--text); }}</style>"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left - 12} {height + 12}">',
            look_of,
            *parts,
            "</svg>\n",
        ]
    )


def _plot(axes: Axes, places: Places, titles: Sequence[str], look: Look, **how: Any) -> None:
    """Draw a line with marks that show their titles, if there are any."""
    how = {**(look.mark if titles else {}), **how}
    axes.plot(*np.reshape(places, (-1, 2)).T, color=INK[look.colour], gid=json.dumps(titles), **how)


def _ticks(most: int) -> MaxNLocator:
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def _name_points(axes: Axes, names: Sequence[str], places: Mapping[str, np.ndarray]) -> None:
    """Write each name beside its prompted feature, where it covers no other name and few marks, or nowhere."""
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for points in places.values() for x, y in points]
    written: list[Bbox] = []
    for name, clean, (x, y) in zip(names, places["clean"], places["prompted"], strict=True):
        text, size = _short(name), _width(_short(name))
        boxes = {
            (side, right, up): Bbox.from_bounds(x + right - share * size, y + up - 0.6 * FONT, size, 1.2 * FONT)
            for side, share, right, up in SIDES
        }
        free = [
            place for place, box in boxes.items()
            if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and not box.count_overlaps(written)
        ]  # fmt: skip
        if free:
            inwards = "left" if x < clean[0] else "right"
            best = min(free, key=lambda place: (boxes[place].count_overlaps(marks), place[0] == inwards))
            side, right, up = best
            axes.text(x + right, y + up, text, ha=side, va="center_baseline", transform=IdentityTransform())
            written.append(boxes[best])


def _short(name: str) -> str:
    text = printable(name)
    shown = next(end for end in range(len(text), -1, -1) if _width(text[:end]) <= LONGEST)
    return text if shown == len(text) else f"{text[:shown]}…"


def _width(text: str) -> float:
    """Return about how long a text is in any font."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" or each in "MW@%" for each in text)
    return FONT * (0.6 * len(text) + 0.45 * wide)


def _picture(label: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Return a chart as an `svg` element; `label` is unique on the page."""
    buffer = io.BytesIO()
    with _one_at_a_time, style.context(["default", {**STYLE, "svg.hashsalt": printable(label)}]):
        figure = Figure((width / 72, height / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of characters that are not in matplotlib's font
            draw(axes)
            for patch in (figure.patch, axes.patch):
                patch.set_visible(False)
            for artist in axes.findobj():
                artist.set_clip_on(False)
            FigureCanvasSVG(figure).print_svg(buffer)
    return _inline(buffer.getvalue().decode(), label)


def _inline(svg: str, label: str) -> str:
    """Return a file of matplotlib with the page's colours and font, titles of marks, and no unused names."""
    root = ElementTree.fromstring(svg)
    for element in [*root]:
        if not element.tag.endswith("}g"):
            root.remove(element)
    used = set(re.findall(r'href="#(\w+)"', svg))
    for element in [*root.iter()]:
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.items()}
        name = element.get("id", "")
        if name not in used:
            element.attrib.pop("id", None)
        if name.startswith("["):
            marks = [each for each in element.iter() if each.tag.endswith("use")]
            for mark, title in zip(marks, json.loads(name), strict=True):
                ElementTree.SubElement(mark, "title").text = title
        if "style" in element.attrib:
            given = re.sub(r"font(-[a-z]+)?: [^;]+(; )?", "", element.attrib["style"])
            element.attrib["style"] = re.sub("#0000([0-9a-f]{2})", _variable, given)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", method="html")


def _variable(found: re.Match[str]) -> str:
    return f"var(--{INKS[int(found[1], 16) - 1]})"
