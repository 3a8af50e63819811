"""Pre-train the tiny CLIP of the examples, from nothing, on rendered icons and characters and their captions.

    python examples/embedded/pretrain_embedded.py --output DIR [--seed 0] [--steps 2400] [--family siglip]

It sees the icons of five families and the characters of matplotlib's fonts: no glyph of Phosphor or Remix, and no
handwriting. Those only measure the finished model, on development concepts and on the digits' "recipe" split.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))  # a script's own folder is all that Python adds

import character_drawing as characters
from anprompt_peft.files import atomic_folder, to_json
from anprompt_peft.method.class_texts import tokenize
from anprompt_peft.method.families import family_of
from anprompt_peft.provenance import provenance
from anprompt_peft.termination import sigterm_interrupts
from captions import DIGIT_TEMPLATES, ICON_TEMPLATES, draw_caption, letter_captions
from development import development_figures
from handwriting import CLASS_NAMES
from icon_drawing import draw_icons, make_bank
from icons import PRETRAINING, Glyph, caption_names, glyphs, is_drawn
from tiny import (
    MAX_LOGIT_SCALE,
    Recipe,
    contrastive_loss,
    deepened,
    learning_rate_factor,
    make_image_processor,
    make_model,
    parameter_groups,
)
from tiny_siglip import RECIPE, processor_of, siglip_of, sigmoid_loss
from tokenization import train_tokenizer

WEIGHTS = "model.safetensors"
TINY_CLIP = Path(__file__).resolve().parent / "tiny_clip"
DRAWN_AT_ONCE = 500  # images


@dataclass(frozen=True, eq=False)
class Images:
    """n training images, uint8 [n, SIZE, SIZE], and what each shows, int64 [n]: a position among the texts."""

    grey: Tensor
    kinds: np.ndarray


@dataclass(frozen=True)
class Texts:
    """How captions of one concept or character are made."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    typos: bool = True


@cache
def icon_glyphs() -> tuple[Glyph, ...]:
    """All glyphs of the pre-training."""
    return tuple(glyph for family in PRETRAINING for glyph in glyphs(family) if is_drawn(glyph))


def designers(glyph_list: Sequence[Glyph]) -> np.ndarray:
    """How many designers have drawn each glyph's concept, int64 [n]; the two releases of Font Awesome are one."""
    drawn: dict[str, set[str]] = {}
    for glyph in glyph_list:
        drawn.setdefault(glyph.concept, set()).add(glyph.family.rstrip(" 56"))
    return np.array([len(drawn[glyph.concept]) for glyph in glyph_list])


def all_texts() -> list[Texts]:
    """Texts of every character in `characters.CHARS`, then of every concept in `caption_names()`."""
    digits = [Texts(names, DIGIT_TEMPLATES) for names in zip(CLASS_NAMES, characters.DIGITS, strict=True)]
    letters = [Texts(("",), letter_captions(letter), typos=False) for letter in characters.LETTERS]
    return [*digits, *letters, *(Texts(names, ICON_TEMPLATES) for names in caption_names().values())]


def draw_icon_pool(recipe: Recipe, rng: np.random.Generator) -> Images:
    """Icons, those of concepts that several designers have drawn more often."""
    icons = icon_glyphs()
    weights = designers(icons).astype(np.float64)
    rows = rng.choice(len(icons), size=recipe.icon_pool, p=weights / weights.sum())
    used, places = np.unique(rows, return_inverse=True)
    bank = make_bank([icons[row] for row in used])
    parts = [draw_icons(bank, places[i : i + DRAWN_AT_ONCE], rng) for i in range(0, len(rows), DRAWN_AT_ONCE)]
    position = {concept: len(characters.CHARS) + i for i, concept in enumerate(caption_names())}
    kinds = np.array([position[icon.concept] for icon in icons])[rows]
    return Images(torch.cat([(part * 255).round().to(torch.uint8) for part in parts]), kinds)


@cache
def character_bank() -> Tensor:
    """Skeletons of all characters, from `characters.make_bank`."""
    return characters.make_bank()


def draw_character_pool(recipe: Recipe, rng: np.random.Generator) -> tuple[Images, Images]:
    """Digits and letters."""
    bank = character_bank()
    digits = recipe.character_pool * recipe.digits // (recipe.digits + recipe.letters)
    first = rng.integers(len(characters.DIGITS), size=digits)
    second = rng.integers(len(characters.DIGITS), len(characters.CHARS), size=recipe.character_pool - digits)
    digit_images, letter_images = (
        torch.cat(
            [characters.draw(bank, kinds[i : i + DRAWN_AT_ONCE], rng) for i in range(0, len(kinds), DRAWN_AT_ONCE)]
        )
        for kinds in (first, second)
    )
    return Images(digit_images, first), Images(letter_images, second)


def tokenizer_of(recipe: Recipe, texts: list[Texts]) -> CLIPTokenizer:
    """The shipped tokenizer for the default number of merges and context, else one trained on the captions.

    Learning breaks ties between equally frequent merges differently in every process: weights would not repeat.
    """
    if (recipe.merges, recipe.context) == (Recipe.merges, Recipe.context):
        return CLIPTokenizer.from_pretrained(TINY_CLIP)
    corpus = [template.replace("{}", name) for text in texts for name in text.names for template in text.templates]
    return train_tokenizer(corpus, recipe.merges, recipe.context)


def text_features(model: Any, tokenizer: Any, captions: list[str]) -> Tensor:
    """Features of captions, float32 [n, projection]; CLIP encodes the shorter half apart, which saves padding."""
    if family_of(model).pads:
        ids = tokenize(captions, tokenizer, model.config, truncate=True)
        return model.get_text_features(input_ids=ids).pooler_output
    ids = tokenizer(captions, truncation=True)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    halves = []
    for rows in (order[: len(order) // 2], order[len(order) // 2 :]):
        longest = max(len(ids[row]) for row in rows)
        padded = [ids[row] + [tokenizer.pad_token_id] * (longest - len(ids[row])) for row in rows]
        halves.append(model.text_model(input_ids=torch.tensor(padded)).pooler_output)
    back = torch.argsort(torch.tensor(order))
    return model.text_projection(torch.cat(halves))[back]


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Features of images [n, 1, SIZE, SIZE], float32 [n, projection]."""
    return model.get_image_features(pixel_values=pixels.expand(-1, 3, -1, -1)).pooler_output


def backward(
    model: Any, tokenizer: Any, pixels: Tensor, captions: list[str], kinds: Tensor, towers: Executor
) -> float:
    """Put the loss's gradients into the parameters and return the loss; each tower runs in a thread of its own."""
    forward = towers.submit(image_features, model, pixels), towers.submit(text_features, model, tokenizer, captions)
    outputs = [job.result() for job in forward]
    leaves = [output.detach().requires_grad_() for output in outputs]
    image, text = (torch.nn.functional.normalize(leaf, dim=1) for leaf in leaves)
    logits = model.logit_scale.exp() * image @ text.T
    loss = (
        sigmoid_loss(logits + model.logit_bias, kinds) if family_of(model).biased else contrastive_loss(logits, kinds)
    )
    loss.backward()
    jobs = [towers.submit(output.backward, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True)]
    for job in jobs:
        job.result()
    return loss.item()


def draw_batch(
    pools: list[tuple[Images, int]], texts: list[Texts], recipe: Recipe, rng: np.random.Generator
) -> tuple[Tensor, list[str], Tensor]:
    """Images as float32 [n, SIZE, SIZE] in 0..1, a caption of each, and their kinds, int64 [n]."""
    chosen = [(pool, rng.integers(len(pool.kinds), size=n)) for pool, n in pools]
    grey = torch.cat([pool.grey[torch.from_numpy(rows)] for pool, rows in chosen]).float() / 255
    kinds = np.concatenate([pool.kinds[rows] for pool, rows in chosen])
    noise = characters.normal(rng, 1, *grey.shape) * characters.uniform(rng, 0, recipe.noise, len(grey))[:, None, None]
    captions = []
    for kind in kinds.tolist():
        text = texts[kind]
        typos = recipe.typos if text.typos else 0.0
        captions.append(draw_caption(text.names, text.templates, typos, recipe.own_name, rng))
    return (grey + noise).clamp(0, 1), captions, torch.from_numpy(kinds)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch use one thread in the calling thread: sums then do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pretrain(recipe: Recipe, seed: int, start: Path | None = None, family: str = "clip") -> tuple[Any, Any]:
    """Train a model: a new one, or of one in a folder a deeper one, [`~tiny.deepened`], or a SigLIP.

    The same recipe and seed give the same weights on the same machine.
    """
    rng, icon_rng, character_rng = np.random.default_rng(seed).spawn(3)
    with one_thread_each(), ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as towers:
        icon_job = towers.submit(draw_icon_pool, recipe, icon_rng)
        digits, letters = towers.submit(draw_character_pool, recipe, character_rng).result()
        pools = [(icon_job.result(), recipe.icons), (digits, recipe.digits), (letters, recipe.letters)]
        if start is None:
            model, processor = new_model(pools, recipe, seed, rng)
        elif family == "siglip":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = siglip_of(CLIPModel.from_pretrained(start))
            processor = processor_of(CLIPProcessor.from_pretrained(start))
        else:
            model = deepened(CLIPModel.from_pretrained(start), recipe.layers)
            processor = CLIPProcessor.from_pretrained(start)
        train(model.train(), processor, pools, recipe, rng, towers)
        return model.eval(), processor


def new_model(
    pools: list[tuple[Images, int]], recipe: Recipe, seed: int, rng: np.random.Generator
) -> tuple[CLIPModel, CLIPProcessor]:
    """Make a model, and a processor with the mean and deviation of a batch."""
    texts = all_texts()
    grey = draw_batch(pools, texts, recipe, rng)[0]
    mean, std = round(grey.mean().item(), 4), round(grey.std().item(), 4)
    processor = CLIPProcessor(make_image_processor(mean, std), tokenizer_of(recipe, texts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_model(recipe, processor.tokenizer), processor


def train(
    model: Any,
    processor: Any,
    pools: list[tuple[Images, int]],
    recipe: Recipe,
    rng: np.random.Generator,
    towers: Executor,
) -> None:
    """Train a model on batches taken from pools of images, so many of each."""
    texts = all_texts()
    mean, std = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    progress = tqdm(range(recipe.steps), desc="pre-training", unit="step")
    for _ in progress:
        images, captions, kinds = draw_batch(pools, texts, recipe, rng)
        optimizer.zero_grad()
        loss = backward(model, processor.tokenizer, (images[:, None] - mean) / std, captions, kinds, towers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write model and processor; the weights as float16, and a configuration that makes them float32 on loading."""
    model.save_pretrained(folder)
    processor.tokenizer.backend_tokenizer.no_padding()  # as it was before anything was measured
    processor.save_pretrained(folder)
    half = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})


def card_of(record: dict[str, Any]) -> str:
    """The model card, written from what training.json holds."""
    figures = record["zero_shot_accuracy_development"]
    rows = "\n".join(f"| {name} | {100 * accuracy:.1f} % |" for name, accuracy in figures.items())
    card = Path(__file__).with_name("card.md").read_text()
    return card.format(**record["recipe"], parameters=record["parameters"], rows=rows, seed=record["seed"])


def run(output: Path, recipe: Recipe, seed: int, start: Path | None = None, family: str = "clip") -> dict[str, Any]:
    """Pre-train, save to a new folder, measure what was saved; returns what training.json holds."""
    with sigterm_interrupts(), atomic_folder(output.resolve()) as folder:
        began = time.perf_counter()
        model, processor = pretrain(recipe, seed, start, family)
        seconds = round(time.perf_counter() - began, 1)
        save(model, processor, folder)
        record = {
            "seed": seed,
            **({} if start is None else {"start": start.name}),
            "recipe": asdict(recipe),
            "parameters": model.num_parameters(),
            "seconds": seconds,
            "zero_shot_accuracy_development": development_figures(type(model).from_pretrained(folder), processor),
            **provenance("qtawesome", "tokenizers", "numpy", "scipy", "matplotlib", "pillow"),
        }
        (folder / "training.json").write_text(to_json(record))
        if start is None:
            (folder / "README.md").write_text(card_of(record))
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train a tiny CLIP on rendered icons and characters.")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; must be absent or empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help=f"{Recipe.steps}, and {RECIPE.steps} for SigLIP")
    parser.add_argument(
        "--family", choices=["clip", "siglip"], default="clip", help="SigLIP starts from the tiny CLIP"
    )
    args = parser.parse_args()
    recipe, start = (RECIPE, TINY_CLIP) if args.family == "siglip" else (Recipe(), None)
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1, not {args.steps}")
    try:
        record = run(args.output, replace(recipe, steps=args.steps or recipe.steps), args.seed, start, args.family)
    except FileExistsError as error:
        parser.error(str(error))
    print(to_json(record), end="")


if __name__ == "__main__":
    main()
