"""The job of `anprompt predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from anprompt_peft.images import IMAGE, CorruptImageError, RGBImage
from anprompt_peft.transform import ClipTransform

from .models import load_adapter
from .options import Device


@dataclass(frozen=True)
class Classified:
    """What became of one image.

    Attributes:
        path (`str`): its file.
        ranking (`list[tuple[str, float]]`): the most likely classes with their probabilities (0..1).
        error (`str`, *optional*): why it could not be read.
    """

    path: str
    ranking: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None


def classify(
    adapter: str,
    revision: str | None,
    device: Device,
    paths: Sequence[str],
    classes: list[str] | None,
    template: list[str] | None,
    top_k: int,
    batch_size: int,
) -> Iterator[Classified]:
    """Classify image files, batch by batch, in order.

    Args:
        adapter (`str`): a folder, or an id on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        device (`Device`): where to compute.
        paths (`Sequence[str]`): the files.
        classes (`list[str]`, *optional*): defaults to those that the adapter was trained on.
        template (`list[str]`, *optional*): defaults to the adapter's.
        top_k (`int`): classes to rank per image.
        batch_size (`int`): images per forward pass.

    Raises:
        ValueError: if there is no such adapter, or classes or templates are invalid.
    """
    model, processor = load_adapter(adapter, revision, device)
    if classes or template:
        model.set_classes(classes or model.class_names, template)
    transform = ClipTransform(processor)
    with tqdm(total=len(paths), unit="image", disable=sys.stdout.isatty() or None) as bar:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            yield from _classify_batch(model, transform, batch, top_k)
            bar.update(len(batch))


def _classify_batch(model: Any, transform: ClipTransform, paths: Sequence[str], top_k: int) -> list[Classified]:
    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = RGBImage().decode_example({"path": path, "bytes": None})
        except (CorruptImageError, OSError) as error:
            errors[path] = str(error)
    ranked = _rank(model, transform({IMAGE: list(images.values())})["pixel_values"], top_k) if images else []
    rankings = dict(zip(images, ranked, strict=True))
    return [Classified(path, rankings.get(path, []), errors.get(path)) for path in paths]


@torch.no_grad()
def _rank(model: Any, pixels: torch.Tensor, top_k: int) -> list[list[tuple[str, float]]]:
    probabilities = model(pixel_values=pixels.to(model.device)).logits.float().softmax(dim=-1)
    shares, best = probabilities.topk(min(top_k, probabilities.shape[1]))
    names = model.class_names
    return [
        [(names[at], share) for at, share in zip(*pair, strict=True)]
        for pair in zip(best.tolist(), shares.tolist(), strict=True)
    ]
