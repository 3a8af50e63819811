"""What frozen weights in bfloat16 change in training: loss curves and gradients, beside float32.

    PYTHONPATH=examples/digits python benchmarks/rounding.py [--seeds 3]

The tiny CLIP of `examples/embedded` is adapted to ten handwritten digits, 16 images each, in both precisions with the
same seeds. Gradients are those of the first batch, after a small random change of all trained weights, and are
compared with float64's: `|g - g64| / |g64|` for each tensor. Prints tables and writes rounding.json and
rounding.png.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from peft import get_peft_model
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from adaptation import Settings, adapt, predict, to_pixels
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import sample_shots
from anprompt_peft.fast import set_precision
from handwriting import CLASS_NAMES, TEMPLATE, load_split
from measuring import parser_for, positive, read_setting
from reporting import run, table, tidy

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
PRECISIONS = ("fp32", "bf16")
COLOURS = dict(zip(PRECISIONS, ("#1b6ca8", "#e08a1e"), strict=True))
SHOTS, BATCH = 16, 8
STEP = 0.01  # standard deviation of the change before the gradients


def main(arguments: list[str] | None = None) -> None:
    """Train and compare in this process."""
    parser = parser_for("rounding", __doc__, dtype="float32", device="cpu", steps=1)
    parser.add_argument("--seeds", type=positive, default=3)
    options = parser.parse_args(arguments)
    setting = read_setting(parser, options)
    jobs = [*(partial(train, seed) for seed in range(1, options.seeds + 1)), gradient_errors]
    run("rounding", options, setting, jobs, lambda job: job(), report, content, draw, "The tiny CLIP")


def content(rows: list[Any]) -> dict[str, Any]:
    """What the record holds."""
    return {"trainings": rows[:-1], "gradient_errors": rows[-1]}


def train(seed: int) -> dict[str, Any]:
    """Losses by epoch and accuracy of one seed in both precisions."""
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    pixels, labels = shots_of(processor, seed)
    tests, right = load_split("test")
    seen = to_pixels(processor, tests)
    row: dict[str, Any] = {"seed": seed, "loss": {}, "accuracy": {}}
    for precision in PRECISIONS:
        clip = CLIPModel.from_pretrained(TINY_CLIP)
        model, log = adapt(clip, configuration(), pixels, labels, Settings(precision=precision), seed)
        row["loss"][precision] = [each["loss"] for each in log]
        row["accuracy"][precision] = 100 * float(np.mean(predict(model, seen).numpy() == right))
    return row


def gradient_errors() -> dict[str, dict[str, float]]:
    """Relative errors of the gradient of each trained tensor, in both precisions."""
    pixels, labels = shots_of(CLIPProcessor.from_pretrained(TINY_CLIP), seed=1)
    rows = torch.arange(0, len(labels), len(labels) // BATCH)[:BATCH]
    batch = pixels[rows], torch.tensor(labels)[rows]
    exact = gradients("fp64", *batch)
    return {precision: _errors(gradients(precision, *batch), exact) for precision in PRECISIONS}


def gradients(precision: str, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of one batch in float64 or a precision."""
    torch.manual_seed(1)
    model: Any = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), configuration())
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(STEP * torch.randn_like(weight))
    if precision == "fp64":
        model, pixels = model.double(), pixels.double()
    else:
        set_precision(model, precision)
    torch.manual_seed(2)  # of the rephrased texts
    model.train()(pixel_values=pixels, labels=labels).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def shots_of(processor: CLIPProcessor, seed: int) -> tuple[Tensor, list[int]]:
    """Pixel values and labels of the shots that a seed draws."""
    images, labels = load_split("train")
    rows = sample_shots(labels, SHOTS, seed)
    return to_pixels(processor, [images[row] for row in rows]), [int(labels[row]) for row in rows]


def configuration() -> ANPromptConfig:
    """The default configuration for the digits."""
    return ANPromptConfig(class_names=CLASS_NAMES, template=TEMPLATE)


def report(record: dict[str, Any]) -> str:
    """The tables."""
    trainings = [
        [str(row["seed"]), *(f"{row['loss'][each][-1]:.4f}" for each in PRECISIONS)]
        + [f"{row['accuracy'][each]:.1f}" for each in PRECISIONS]
        for row in record["trainings"]
    ]
    errors = record["gradient_errors"]
    tensors = [[name, *(f"{errors[each][name]:.1e}" for each in PRECISIONS)] for name in errors["fp32"]]
    heads = [f"{what}, {each}" for what in ("last loss", "accuracy") for each in PRECISIONS]
    return f"{table(['seed', *heads], trainings)}\n\n{table(['gradient of', *PRECISIONS], tensors)}"


def draw(record: dict[str, Any]) -> Figure:
    """Draw the losses side by side, and the errors of all gradients."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    curves, errors = figure.subplots(1, 2)
    for precision in PRECISIONS:
        dashes = "-" if precision == "fp32" else (0, (4, 3))
        for number, row in enumerate(record["trainings"]):
            epochs = range(1, 1 + len(row["loss"][precision]))
            label = None if number else precision
            curves.plot(epochs, row["loss"][precision], color=COLOURS[precision], linestyle=dashes, label=label)
        values = sorted(record["gradient_errors"][precision].values())
        errors.plot(range(1, 1 + len(values)), values, "o", color=COLOURS[precision], label=precision)
    errors.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set(xlabel="epoch", ylabel="training loss, a line per seed")
    errors.set(xlabel="trained tensors, sorted by error", ylabel="relative error of the gradient", yscale="log")
    for axes in (curves, errors):
        tidy(axes)
        axes.legend(frameon=False)
    return figure


def _errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    def short(name: str) -> str:
        return name.removeprefix("base_model.model.").replace("anprompt_", "").replace(".default", "")

    return {short(name): float((found[name] - each).norm() / each.norm()) for name, each in exact.items()}


if __name__ == "__main__":
    main()
