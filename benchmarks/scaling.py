"""How the cost of a training step grows with classes, batch, prompt tokens and image size.

    python benchmarks/scaling.py [--axes classes batch tokens image] [--classes 10 30 ...] [--steps 5]

One of them varies while the others stay at 50 classes, batch 4, 9 tokens and 224 pixels, on ViT-B/16 with random
weights. Each point is measured in a process of its own: with all savings, from --chunk-from classes on with
`Savings(text_chunk=...)`, and up to --plain-classes and --plain-batch on the plain path. Noise prompts and frozen text
features are random, so that making the adapter takes no part. Operations include what chunks compute again. The line
`time = a + b * x` and the exponent of the upper half of the points are fitted by least squares. Prints the points and
the fits, and writes scaling.json and scaling.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fresh import in_process
from growth import fit
from measuring import (
    Setting,
    gemm_peak,
    interleave,
    operations,
    parser_for,
    peak_memory_gb,
    positive,
    read_setting,
    spread,
)
from reporting import colour, logarithmic, run, table, tidy, with_range
from ways import PLAIN, SAVINGS, add_way_options, chunked, make_step
from workload import IMAGE_SIZE, make_adapted, make_workload

PATCH = 16
AXES = {
    "classes": [10, 30, 100, 300, 1000, 3000, 10_000],
    "batch": [1, 2, 4, 8, 16, 32, 64],
    "tokens": [2, 4, 9, 16, 32, 64],
    "image": [224, 288, 336, 448],
}
UNITS = {"classes": "classes", "batch": "images in the batch", "tokens": "prompt tokens", "image": "patches per image"}
ONE = {"classes": "class", "batch": "image", "tokens": "token", "image": "patch"}
POINT_COLUMNS = ["axis", "value", "way", "s per step", "GB at the peak", "GFLOP", "GFLOP/s", "of GEMM"]
FIT_COLUMNS = ["axis", "way", "points", "a (s)", "b (ms)", "per", "R^2", "exponent", "its R^2"]


@dataclass(frozen=True)
class Point:
    """One measurement: which axis it lies on, its way, and all sizes."""

    axis: str
    way: str
    classes: int = 50
    batch: int = 4
    tokens: int = 9
    image: int = IMAGE_SIZE

    def __str__(self) -> str:
        return f"{self.axis} {getattr(self, self.axis)}, {self.way}"

    @property
    def x(self) -> int:
        """Where it lies on its axis; images count their patches."""
        return (self.image // PATCH) ** 2 if self.axis == "image" else getattr(self, self.axis)


def main(arguments: list[str] | None = None) -> None:
    """Measure all points and fit."""
    options, setting = parse(arguments)

    def content(points: list[dict[str, Any]]) -> dict[str, Any]:
        return {"points": points, "fits": fits(points)}

    run("scaling", options, setting, plan(options), lambda point: measure(point, setting), report, content, draw)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("scaling", __doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", nargs="+", type=positive, default=values, help=f"points (default {values})")
    add_way_options(parser, chunk_from=1000, plain_classes=100)
    parser.add_argument("--plain-batch", type=int, default=16, help="largest batch for the plain path (default 16)")
    options = parser.parse_args(arguments)
    if min(options.classes) < 2 or min(options.tokens) < 2:
        parser.error("--classes and --tokens start at 2.")
    if any(side % PATCH for side in options.image):
        parser.error(f"--image takes multiples of {PATCH}, the side of a patch.")
    return options, read_setting(parser, options)


def plan(options: argparse.Namespace) -> Iterator[Point]:
    """All points. Where chunks begin, both with and without them."""
    for axis in options.axes:
        for value in sorted(set(getattr(options, axis))):
            point = Point(axis, SAVINGS, **{axis: value})
            if point.classes <= options.chunk_from:
                yield point
            if point.classes >= options.chunk_from:
                yield Point(axis, chunked(options.text_chunk), **{axis: value})
            if point.classes <= options.plain_classes and point.batch <= options.plain_batch:
                yield Point(axis, PLAIN, **{axis: value})


def measure(point: Point, setting: Setting) -> dict[str, Any]:
    """Everything about one point."""
    return {**asdict(point), "x": point.x, **in_process(measure_point, point, setting)}


def measure_point(point: Point, setting: Setting) -> dict[str, Any]:
    """Time the steps of this process, then read its peak memory, then count."""
    setting.begin()
    work = make_workload(point.classes, point.batch, point.image).to(setting.device)
    noise = point.tokens // 2
    tokens = {"num_virtual_tokens": point.tokens - noise, "num_noise_tokens": noise}
    step = make_step(point.way, make_adapted(work, random_targets=True, **tokens), work, setting.dtype)
    (seconds,) = interleave({point.way: step}, setting, str(point)).values()
    memory = peak_memory_gb(setting.device)
    return {
        "seconds": spread(seconds),
        "all_seconds": seconds,
        "peak_memory_gb": memory,
        "operations": operations(step),
        "gemm_peak": gemm_peak(setting),
    }


def series(points: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """The points of an axis by way."""
    mine = [point for point in points if point["axis"] == axis]
    return {way: [each for each in mine if each["way"] == way] for way in dict.fromkeys(each["way"] for each in mine)}


def fits(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The growth of the median time of a step along each axis, for each way with enough points."""
    found = []
    for axis in AXES:
        for way, mine in series(points, axis).items():
            growth = fit([point["x"] for point in mine], [point["seconds"]["median"] for point in mine])
            if growth:
                found.append({"axis": axis, "way": way, "points": len(mine), **asdict(growth)})
    return found


def report(record: dict[str, Any]) -> str:
    """The tables of points and fits."""
    points = []
    for point in record["points"]:
        rate = point["operations"] / point["seconds"]["median"]
        points.append(
            [
                point["axis"],
                f"{point[point['axis']]:,}",
                point["way"],
                with_range(point["seconds"]),
                f"{point['peak_memory_gb']:.2f}",
                f"{point['operations'] / 1e9:,.0f}",
                f"{rate / 1e9:,.0f}",
                f"{rate / point['gemm_peak']:.0%}",
            ]
        )
    lines = [
        [
            each["axis"],
            each["way"],
            str(each["points"]),
            f"{each['start']:.3f}",
            f"{1000 * each['slope']:.3f}",
            ONE[each["axis"]],
            f"{each['r_squared']:.4f}",
            f"{each['exponent']:.2f}",
            f"{each['exponent_r_squared']:.4f}",
        ]
        for each in record["fits"]
    ]
    return f"{table(POINT_COLUMNS, points)}\n\ntime = a + b * x\n\n{table(FIT_COLUMNS, lines)}"


def draw(record: dict[str, Any]) -> Figure:
    """Draw times and the fitted lines over each axis."""
    measured = {axis: ways for axis in AXES if (ways := series(record["points"], axis))}
    lines = math.ceil(len(measured) / 2)
    figure = Figure(figsize=(12 if len(measured) > 1 else 7, 4.5 * lines), layout="constrained")
    panels = figure.subplots(lines, min(2, len(measured)), squeeze=False).flat
    for axes, (axis, ways) in zip(panels, measured.items(), strict=False):
        for way, mine in ways.items():
            x, label = [point["x"] for point in mine], way
            for line in record["fits"]:
                if (line["axis"], line["way"]) == (axis, way):
                    draw_line(axes, line, x, colour(way))
                    cost = f"{line['start']:.3g} s {1000 * line['slope']:+.3g} ms · x"
                    label += f": {cost}, exponent {line['exponent']:.2f}"
            axes.plot(x, [point["seconds"]["median"] for point in mine], "o", color=colour(way), label=label)
        finish_panel(axes, axis, ways)
    return figure


def draw_line(axes: Axes, line: dict[str, Any], x: list[int], tint: str) -> None:
    """Draw a fitted line, bent by the logarithmic axes, over the range of its points."""
    ends = min(x), max(x)
    at = [ends[0] * (ends[1] / ends[0]) ** (step / 50) for step in range(51)]
    axes.plot(at, [line["start"] + line["slope"] * each for each in at], color=tint, linewidth=1)


def finish_panel(axes: Axes, axis: str, ways: dict[str, list[dict[str, Any]]]) -> None:
    """The axis that varies, with ticks where something was measured, and the legend."""
    ticks = {point["x"]: point[axis] for mine in ways.values() for point in mine}
    axes.set_xscale("log")
    labels = [f"{x}\n{value} px" if axis == "image" else f"{value:,}" for x, value in ticks.items()]
    axes.set_xticks(list(ticks), labels)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"{UNITS[axis]} (log)")
    axes.set_yscale("log")
    logarithmic(axes.yaxis)
    axes.set_ylim(axes.get_ylim()[0] / 1.3, axes.get_ylim()[1] * 1.6)
    axes.set_ylabel("s per step (log)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)


if __name__ == "__main__":
    main()
