"""Pre-train a tiny CLIP model from nothing on rendered glyphs and their captions.

    python examples/digits/pretrain.py --output DIR [--seed 0] [--steps 2000]

No handwriting is seen in training: scikit-learn's digits only measure the finished model, on the "recipe" split.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.files import to_json, whole_folder
from anprompt_peft.provenance import provenance
from captions import captions_for, draw_captions
from glyphs import CHARS, DIGITS, draw, make_bank
from handwriting import CLASS_NAMES, TEMPLATE, load_split, select_classes
from modelcard import model_card
from tiny import (
    MAX_LOGIT_SCALE,
    TinyRecipe,
    contrastive_loss,
    learning_rate_factor,
    make_image_processor,
    make_model,
    parameter_groups,
)
from tokenization import train_tokenizer
from zeroshot import zero_shot_accuracy

BASE, NEW = tuple(range(5)), tuple(range(5, 10))


@dataclass(frozen=True)
class Recipe(TinyRecipe):
    """Everything that the result depends on besides the seed."""

    steps: int = 2000
    batch_size: int = 128
    digit_share: float = 0.5  # of each batch, the rest are letters


def make_processor(recipe: Recipe, mean: float, std: float) -> CLIPProcessor:
    """Tokenizer trained on all captions, and an image processor for 32 px with the given grey mean and deviation."""
    texts = [caption for char in CHARS for caption in captions_for(char)]
    tokenizer = train_tokenizer(texts, recipe.merges, recipe.context)
    return CLIPProcessor(image_processor=make_image_processor(mean, std), tokenizer=tokenizer)


def draw_chars(n: int, digit_share: float, rng: np.random.Generator) -> np.ndarray:
    """Positions in `CHARS` of n random characters, int64 [n]; a fixed share are digits, which come first there."""
    digits = round(n * digit_share)
    return np.concatenate(
        [rng.integers(len(DIGITS), size=digits), rng.integers(len(DIGITS), len(CHARS), size=n - digits)]
    )


def pretrain(recipe: Recipe, seed: int) -> tuple[CLIPModel, CLIPProcessor]:
    """Train a tokenizer and a model; the same recipe and seed give the same weights on the same machine."""
    rng = np.random.default_rng(seed)
    bank = make_bank()
    grey = draw(bank, draw_chars(2048, recipe.digit_share, rng), rng).float() / 255
    mean, std = round(grey.mean().item(), 4), round(grey.std().item(), 4)
    processor = make_processor(recipe, mean, std)
    options = [captions_for(char) for char in CHARS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(recipe, processor.tokenizer).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    progress = tqdm(range(recipe.steps), desc="pre-training", unit="step")
    for _ in progress:
        chars = draw_chars(recipe.batch_size, recipe.digit_share, rng)
        pixels = (draw(bank, chars, rng)[:, None].float() / 255 - mean) / std
        text = processor.tokenizer(draw_captions(options, chars, rng), padding=True, return_tensors="pt")
        logits = model(pixel_values=pixels.expand(-1, 3, -1, -1), **text).logits_per_image
        loss = contrastive_loss(logits, torch.from_numpy(chars))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval(), processor


def recipe_accuracies(model: CLIPModel, processor: CLIPProcessor) -> dict[str, float]:
    """Zero-shot accuracy (0..1) on the recipe split: among all ten digits, among 0-4, and among 5-9."""
    images, labels = load_split("recipe")
    sets: dict[str, Sequence[int]] = {"all": range(10), "0-4": BASE, "5-9": NEW}
    return {
        name: zero_shot_accuracy(
            model, processor, *select_classes(images, labels, classes), [CLASS_NAMES[c] for c in classes], TEMPLATE
        )
        for name, classes in sets.items()
    }


def run(output: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Pre-train, measure on the recipe split, save; returns what training.json holds.

    Raises:
        FileExistsError: if `output` holds anything already.
    """
    with whole_folder(output.resolve()) as folder:
        start = time.perf_counter()
        model, processor = pretrain(recipe, seed)
        record = {
            "seed": seed,
            "recipe": asdict(recipe),
            "parameters": model.num_parameters(),
            "seconds": round(time.perf_counter() - start, 1),
            "zero_shot_accuracy_recipe_split": recipe_accuracies(model, processor),
            **provenance("tokenizers", "numpy", "scipy", "matplotlib", "pillow"),
        }
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "training.json").write_text(to_json(record))
        (folder / "README.md").write_text(model_card(record))
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train a tiny CLIP model on rendered glyphs.")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; must be absent or empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, not {args.steps}")
    try:
        record = run(args.output, Recipe(steps=args.steps), args.seed)
    except FileExistsError as error:
        parser.error(str(error))
    print(to_json(record), end="")


if __name__ == "__main__":
    main()
