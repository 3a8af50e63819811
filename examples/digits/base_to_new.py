"""Base-to-new generalisation on handwritten digits: what ANPrompt gains over zero-shot CLIP, and what it loses.

    python examples/digits/base_to_new.py [--output outputs/digits] [--seeds 5] [--shots 16]

A tiny CLIP that has seen only icons and rendered characters is adapted to a few handwritten digits of five classes
(base). It is measured on other handwritten digits of these and, as unseen classes, of the other five (new). Base is
0-4, then 5-9, then the even digits. Writes results.json, results.png, the adapter of the first split and seed, and a
few test images.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor

from adaptation import Settings, adapt, predict, to_pixels
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ShotsError, sample_shots
from anprompt_peft.evaluation import BaseToNew, Estimate, base_to_new, gain
from anprompt_peft.files import to_json, whole_folder
from anprompt_peft.provenance import provenance
from anprompt_peft.termination import sigterm_interrupts
from anprompt_peft.training import RECIPES
from charts import save_chart
from handwriting import CLASS_NAMES, TEMPLATE, load_split, select_classes

TINY_CLIP = Path(__file__).resolve().parents[1] / "embedded" / "tiny_clip"
RECORD = "results.json"
SPLITS = {
    "base 0-4, new 5-9": [0, 1, 2, 3, 4],
    "base 5-9, new 0-4": [5, 6, 7, 8, 9],
    "base even, new odd": [0, 2, 4, 6, 8],
}
FIRST = next(iter(SPLITS))
ZERO_SHOT, ADAPTED, GAIN = "zero-shot CLIP", "ANPrompt", "difference"
CAVEAT = (
    "The tiny CLIP was pre-trained on rendered glyphs of all ten digits, among others, and on no handwriting: it was "
    "not adapted to the 'new' classes, but has seen their glyphs."
)
DEVELOPMENT_NOTE = "Development run: shots and test images both come from the recipe split. Not a result."

Digits = tuple[list[Image.Image], np.ndarray]
"""Images and their labels, int64 `[n]` in 0..9."""


@dataclass
class Half:
    """Images of half of the classes, as pixel values `[n, 3, H, W]` and positions in their names, int64 `[n]`."""

    names: list[str]
    pixels: Tensor
    labels: Tensor


@dataclass
class Task:
    """A split of the classes: shots are drawn from `pool`, and `tests` has the test images `base` and `new`."""

    pool: Half
    tests: dict[str, Half]
    draws: list[list[int]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all splits and seeds, print the table, write the output folder and return the record."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # PEFT's, for every adapter
    torch.set_num_threads(1)  # at this size more threads are slower, and one gives the same result on any machine
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    pool, held_out = load_data(options.development)
    try:
        tasks = {
            split: make_task(pool, held_out, base, processor, options.shots, options.seeds)
            for split, base in SPLITS.items()
        }
        with sigterm_interrupts(), whole_folder(options.output, replaces=RECORD) as folder:
            record, results = run(options, tasks, folder)
            (folder / RECORD).write_text(to_json(record))
            save_chart(folder / "results.png", results, record["splits"][FIRST]["loss_terms"])
            save_examples(folder / "images", options.development)
    except (ShotsError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    print(table(results))
    for note in record["notes"]:
        print(note)
    print(f"Written to {options.output}/: {RECORD}, results.png, adapter/, images/")
    return record


def run(
    options: argparse.Namespace, tasks: dict[str, Task], folder: Path
) -> tuple[dict[str, Any], dict[str, dict[str, BaseToNew]]]:
    """Measure all splits; save the adapter of the first split and seed to `folder`."""
    started = time.perf_counter()
    clip: Any = CLIPModel.from_pretrained(TINY_CLIP).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    splits, results = {}, {}
    with tqdm(total=options.seeds * len(tasks), desc="splits and shot seeds", file=sys.stderr) as bar:
        for split, task in tasks.items():
            adapter = folder / "adapter" if split == FIRST else None
            splits[split], results[split], clip = run_split(clip, task, options.settings, adapter, bar)
    record = {
        "task": "base-to-new generalisation on scikit-learn's handwritten digits",
        "notes": [CAVEAT, *([DEVELOPMENT_NOTE] if options.development else [])],
        "splits": splits,
        "shots": options.shots,
        "seeds": list(range(options.seeds)),
        "settings": asdict(options.settings),
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    return record, results


def run_split(
    clip: Any, task: Task, settings: Settings, adapter: Path | None, bar: Any
) -> tuple[dict[str, Any], dict[str, BaseToNew], Any]:
    """Measure zero-shot CLIP and one adapter per draw of shots.

    Args:
        clip: the model to adapt.
        task: the split.
        settings: of the adaptation.
        adapter: where the first adapter goes.
        bar: is told of every adapter.

    Returns:
        The record of the split, its figures by method, and `clip` as it was before.
    """
    config = ANPromptConfig(
        class_names=task.tests["base"].names, template=TEMPLATE, similarity_weight=settings.similarity_weight
    )
    zero_shot = {half: zero_shot_hits(clip, data, config) for half, data in task.tests.items()}
    adapted: dict[str, list[np.ndarray]] = {half: [] for half in task.tests}
    logs = []
    for seed, chosen in enumerate(task.draws):
        pool = task.pool
        model, log = adapt(clip, config, pool.pixels[chosen], pool.labels[chosen].tolist(), settings, seed)
        logs.append(log)
        for half, data in task.tests.items():
            adapted[half].append(hits(model, data))
        if seed == 0 and adapter:
            model.set_classes(None)
            model.save_pretrained(str(adapter))
        clip = model.unload()
        bar.update()
    base, new = np.stack(adapted["base"]), np.stack(adapted["new"])
    results = {
        ZERO_SHOT: base_to_new(zero_shot["base"][None], zero_shot["new"][None]),
        ADAPTED: base_to_new(base, new),
        GAIN: gain(base, new, zero_shot["base"], zero_shot["new"]),
    }
    record = {
        "accuracy_percent": {name: results[name].to_dict() for name in (ZERO_SHOT, ADAPTED)},
        "difference_percentage_points": results[GAIN].to_dict(),
        "per_seed_percent": {half: [100 * float(each.mean()) for each in runs] for half, runs in adapted.items()},
        "classes": {half: data.names for half, data in task.tests.items()},
        "test_images": {half: len(data.labels) for half, data in task.tests.items()},
        "adapter_config": config.to_dict(),
        "loss_terms": logs,
    }
    return record, results, clip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line into options, with the fields of the settings as options of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"), help="folder to write or replace")
    parser.add_argument("--seeds", type=positive, default=5, help="number of shot seeds per split (default 5)")
    parser.add_argument("--shots", type=positive, default=16, help="images per class (default 16)")
    parser.add_argument(
        "--development", action="store_true", help="shots and images from the recipe split, to choose settings with"
    )
    for name, default in asdict(Settings()).items():
        option = f"--{name.replace('_', '-')}"
        choices = [*RECIPES] if name == "recipe" else None
        parser.add_argument(option, type=type(default), default=default, choices=choices, help=f"default: {default}")
    options = parser.parse_args(arguments)
    options.settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    return options


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def load_data(development: bool) -> tuple[Digits, Digits]:
    """The pool that shots are drawn from, and the test images."""
    if not development:
        return load_split("train"), load_split("test")
    images, labels = load_split("recipe")
    test = [at for at in range(len(images)) if at % 3]
    return (images[::3], labels[::3]), ([images[at] for at in test], labels[test])


def make_task(
    pool: Digits, held_out: Digits, base: list[int], processor: CLIPProcessor, shots: int, seeds: int
) -> Task:
    """Split pool and test images by class and draw the shots of every seed.

    Raises:
        ShotsError: if a class has too few images.
    """
    new = [label for label in range(len(CLASS_NAMES)) if label not in base]
    half = make_half(*pool, base, processor)
    tests = {"base": make_half(*held_out, base, processor), "new": make_half(*held_out, new, processor)}
    return Task(half, tests, [sample_shots(half.labels.tolist(), shots, seed) for seed in range(seeds)])


def make_half(images: list[Any], labels: np.ndarray, classes: list[int], processor: CLIPProcessor) -> Half:
    """Keep the images of some classes, as pixel values and positions in their names."""
    kept, positions = select_classes(images, labels, classes)
    return Half([CLASS_NAMES[label] for label in classes], to_pixels(processor, kept), torch.from_numpy(positions))


def hits(model: Any, data: Half) -> np.ndarray:
    """Whether each image is classified right among its half's classes: bool `[n]`."""
    model.set_classes(data.names)
    return (predict(model, data.pixels) == data.labels).numpy()


def zero_shot_hits(clip: CLIPModel, data: Half, config: ANPromptConfig) -> np.ndarray:
    """The same with CLIP as it is, on the same template and class names: bool `[n]`."""
    tokenizer = CLIPProcessor.from_pretrained(TINY_CLIP).tokenizer
    texts = [config.templates[0].format(name) for name in data.names]
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(clip.device)
    with torch.no_grad():
        logits = clip(**tokens, pixel_values=data.pixels.to(clip.device)).logits_per_image
    return (logits.argmax(dim=1).cpu() == data.labels).numpy()


def table(results: dict[str, dict[str, BaseToNew]]) -> str:
    """The results as text: accuracies in per cent and differences in percentage points, with 95 % intervals."""
    lines = [f"{'accuracy in %, 95 % interval':<30}{'base':>22}{'new':>22}{'harmonic mean':>22}"]
    for split, methods in results.items():
        lines.append(split)
        for method, result in methods.items():
            shown = signed if method == GAIN else str
            figures = (shown(estimate) for estimate in (result.base, result.new, result.harmonic_mean))
            lines.append(f"  {method:<28}" + "".join(f"{figure:>22}" for figure in figures))
    return "\n".join(lines)


def signed(difference: Estimate) -> str:
    """A difference with its interval, each with its sign."""
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def save_examples(folder: Path, development: bool) -> None:
    """Save the first held-out image of every class, for the classify command."""
    images, labels = load_split("recipe" if development else "test")
    folder.mkdir()
    for label, name in enumerate(CLASS_NAMES):
        images[int(np.flatnonzero(labels == label)[0])].save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
