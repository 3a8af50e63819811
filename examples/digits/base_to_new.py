"""Base-to-new generalisation on handwritten digits: what ANPrompt gains over zero-shot CLIP.

    python examples/digits/base_to_new.py [--output outputs/digits] [--seeds 10] [--shots 16]

A tiny CLIP that has seen only rendered glyphs is adapted to a few handwritten digits 0-4 (base) and measured on other
handwritten 0-4 and, as unseen classes, on 5-9 (new). Writes results.json, results.png, the adapter of the first seed
and a few test images.
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
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor

from adaptation import Recipe, adapt, predict, to_pixels
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ShotsError, sample_shots
from anprompt_peft.evaluation import BaseToNew, base_to_new
from anprompt_peft.files import to_json, whole_folder
from anprompt_peft.provenance import provenance
from charts import save_chart
from handwriting import CLASS_NAMES, TEMPLATE, load_split, select_classes

FOLDER = Path(__file__).resolve().parent
TINY_CLIP = FOLDER / "tiny_clip"
RECORD = "results.json"
HALVES = {"base": list(range(5)), "new": list(range(5, 10))}
CAVEAT = (
    "The tiny CLIP was pre-trained on rendered glyphs of all ten digits, 5-9 included, and on no handwriting: "
    "'new' means classes never adapted to, whose glyphs, but not whose handwriting, were seen."
)
DEVELOPMENT_NOTE = "Development run: shots and test images both come from the recipe split. Not a result."


@dataclass
class Half:
    """One half of the classes: names, test images, and whether each was classified right, per method and run."""

    names: list[str]
    pixels: Tensor
    labels: Tensor


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all seeds, print the table, write the output folder and return the record."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # PEFT's, for every adapter
    torch.set_num_threads(1)  # at this size more threads are slower, and one gives the same result on any machine
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    pool, tests = load_data(options.development, processor)
    try:
        draws = [sample_shots(pool.labels.tolist(), options.shots, seed) for seed in range(options.seeds)]
        with whole_folder(options.output, replaces=RECORD) as folder:
            record, results = run(options, pool, draws, tests, folder)
            (folder / RECORD).write_text(to_json(record))
            title = f"{options.shots} shots, {options.seeds} seeds"
            save_chart(folder / "results.png", results, record["loss_terms"], title)
            save_examples(folder / "images", options.development)
    except (ShotsError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    print(table(results))
    for note in record["notes"]:
        print(note)
    print(f"Written to {options.output}/: {RECORD}, results.png, adapter/, images/")
    return record


def run(
    options: argparse.Namespace, pool: Half, draws: list[list[int]], tests: dict[str, Half], folder: Path
) -> tuple[dict[str, Any], dict[str, BaseToNew]]:
    """Measure zero-shot CLIP and one adapter per draw of shots; save the first adapter to `folder`."""
    started = time.perf_counter()
    clip = CLIPModel.from_pretrained(TINY_CLIP).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    config = ANPromptConfig(
        class_names=tests["base"].names, template=TEMPLATE, similarity_weight=options.recipe.similarity_weight
    )
    zero_shot = {half: zero_shot_hits(clip, data, config) for half, data in tests.items()}
    adapted: dict[str, list[np.ndarray]] = {half: [] for half in HALVES}
    logs = []
    for seed, chosen in enumerate(tqdm(draws, desc="shot seeds", file=sys.stderr)):
        model, log = adapt(clip, config, pool.pixels[chosen], pool.labels[chosen].tolist(), options.recipe, seed)
        logs.append(log)
        for half, data in tests.items():
            adapted[half].append(hits(model, data))
        if seed == 0:
            model.set_classes(None)
            model.save_pretrained(str(folder / "adapter"))
        clip = model.unload()
    results = {
        "zero-shot CLIP": base_to_new(zero_shot["base"][None], zero_shot["new"][None]),
        "ANPrompt": base_to_new(np.stack(adapted["base"]), np.stack(adapted["new"])),
    }
    record = {
        "task": "base-to-new generalisation on scikit-learn's handwritten digits",
        "notes": [CAVEAT, *([DEVELOPMENT_NOTE] if options.development else [])],
        "accuracy_percent": {name: result.to_dict() for name, result in results.items()},
        "per_seed_percent": {half: [100 * float(each.mean()) for each in runs] for half, runs in adapted.items()},
        "shots": options.shots,
        "seeds": list(range(options.seeds)),
        "classes": {half: data.names for half, data in tests.items()},
        "test_images": {half: len(data.labels) for half, data in tests.items()},
        "recipe": asdict(options.recipe),
        "adapter_config": config.to_dict(),
        "loss_terms": logs,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    return record, results


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line into options, with the recipe's fields as options of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"), help="folder to write or replace")
    parser.add_argument("--seeds", type=positive, default=10, help="number of shot seeds (default 10)")
    parser.add_argument("--shots", type=positive, default=16, help="images per class (default 16)")
    parser.add_argument(
        "--development", action="store_true", help="shots and images from the recipe split, to choose settings with"
    )
    for name, default in asdict(Recipe()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"default {default}")
    options = parser.parse_args(arguments)
    options.recipe = Recipe(**{name: getattr(options, name) for name in asdict(Recipe())})
    return options


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def load_data(development: bool, processor: CLIPProcessor) -> tuple[Half, dict[str, Half]]:
    """The pool that base shots are drawn from, and the test images of each half."""
    if development:
        images, labels = load_split("recipe")
        pool, test = (
            (images[::3], labels[::3]),
            [(image, label) for at, (image, label) in enumerate(zip(images, labels, strict=True)) if at % 3],
        )
        held_out = [image for image, _ in test], np.array([label for _, label in test])
    else:
        pool, held_out = load_split("train"), load_split("test")
    tests = {half: make_half(*held_out, classes, processor) for half, classes in HALVES.items()}
    return make_half(*pool, HALVES["base"], processor), tests


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


def table(results: dict[str, BaseToNew]) -> str:
    """The results as text, in per cent with 95 % intervals."""
    lines = [f"{'accuracy in % [95 % interval]':<30}{'base':>20}{'new':>20}{'harmonic mean':>20}"]
    for name, result in results.items():
        lines.append(f"{name:<30}{result.base!s:>20}{result.new!s:>20}{result.harmonic_mean!s:>20}")
    return "\n".join(lines)


def save_examples(folder: Path, development: bool) -> None:
    """Save the first held-out image of every class, for the classify command."""
    images, labels = load_split("recipe" if development else "test")
    folder.mkdir()
    for label, name in enumerate(CLASS_NAMES):
        images[int(np.flatnonzero(labels == label)[0])].save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
