"""Classifies any number of images in batches. Threads decode the next batch while the model computes."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from ..classifier import CLIPClassifier
from ..data.images import IMAGE, CorruptImageError, naming, open_image, upright
from ..data.transform import ClipTransform
from ..method.features import evaluating
from ..tuner import adapted_clip
from .graph import Graph

Source = str | os.PathLike[str] | io.BytesIO | Image.Image
Ranking = list[tuple[str, float]]
Ranker = Callable[[Tensor], list[Ranking]]
Logits = Callable[[Tensor], Tensor]

_LOCKS = [Lock() for _ in range(61)]  # by id: two threads must not decode the same opened image


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    Attributes:
        path (`str`, *optional*): the image's file; `None` for an image that was not opened from one.
        ranking (`list[tuple[str, float]]`): the most likely classes with their probabilities (0..1), in descending
            order; empty if the image could not be read.
        error (`str`, *optional*): why it could not be read, or that its logits are not finite.
    """

    path: str | None
    ranking: Ranking = field(default_factory=list)
    error: str | None = None


def predict(
    model: PeftModel | CLIPModel | CLIPClassifier | Graph,
    images: Iterable[Source],
    processor: Any,
    *,
    top_k: int = 1,
    batch_size: int = 16,
    workers: int | None = None,
) -> Iterator[Prediction]:
    """Classify images in order, in batches; threads decode the next batch while the model computes.

    Classes, adapter and whether it is disabled are those at the time of the call, whatever is chosen later or by other
    threads. The forward pass runs in evaluation mode; between predictions every module is in the mode that the caller
    left it in. `images` is read in the caller's
    thread, at most one batch ahead, so it may be endless.

    Args:
        model (`PeftModel`, `AdaptedModel`, `CLIPClassifier` or `Graph`): the adapted model, a saved classifier, or an
            exported graph.
        images (`Iterable`): paths, PIL images and files' contents as `BytesIO`, whose attribute `name`, if there is
            one, is their path; in any mixture. EXIF rotation is applied.
        processor (`CLIPProcessor` or CLIP image processor): gives size, crop, resampling, mean and std.
        top_k (`int`): classes to rank per image; all of them if there are fewer.
        batch_size (`int`): images per forward pass.
        workers (`int`, *optional*): decoding threads; defaults to the number of processors, at most `batch_size`. They
            end with the last prediction, with an error, or when the iterator is closed or deleted.

    Returns:
        `Iterator[Prediction]`: one per image. An image that cannot be read, or for which there is too little
            memory, has an `error`; the others are classified.

    Raises:
        TypeError: if the model has no ANPrompt adapter, or an item is none of these. Items of a list or tuple are
            checked at the call, others when they are read.
        ValueError: for a number below 1 or not whole, no active adapter, or a processor that is not CLIP's.
        RuntimeError: from the iterator, if the adapter was deleted after the call.
    """
    for name, number in {"top_k": top_k, "batch_size": batch_size, "workers": workers}.items():
        if (type(number) is not int or number < 1) and (name, number) != ("workers", None):
            raise ValueError(f"{name}={number!r} must be a whole number of at least 1.")
    if isinstance(images, str) or not isinstance(images, Iterable):
        raise TypeError(f"images={images!r} must be a list or another iterable of paths and PIL images.")
    for image in images if isinstance(images, (list, tuple)) else ():
        _path_of(image)
    workers = workers or min(batch_size, os.cpu_count() or 1)
    return _predictions(_ranker(model, top_k), images, ClipTransform(processor), batch_size, workers)


def _predictions(
    rank: Ranker, images: Iterable[Source], transform: ClipTransform, batch_size: int, workers: int
) -> Iterator[Prediction]:
    source = iter(images)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="anprompt-predict")

    def submit_batch() -> list[tuple[str | None, Future[Tensor | str]]]:
        return [(_path_of(image), pool.submit(_read, image, transform)) for image in islice(source, batch_size)]

    try:
        batch = submit_batch()
        while batch:
            following = submit_batch()
            seen = [(path, read.result()) for path, read in batch]
            pixels = [each for _, each in seen if isinstance(each, Tensor)]
            rankings = iter(rank(torch.cat(pixels)) if pixels else ())
            for path, each in seen:
                yield Prediction(path, error=each) if isinstance(each, str) else _prediction(path, next(rankings))
            batch = following
    finally:
        pool.shutdown(cancel_futures=True)


def _prediction(path: str | None, ranking: Ranking) -> Prediction:
    """Return an image's result; one whose probabilities are not finite is an error."""
    if all(math.isfinite(share) for _, share in ranking):
        return Prediction(path, ranking)
    error = f"{path or 'an image'}: its logits are NaN or infinite, as the adapter's weights may be."
    return Prediction(path, error=error)


def _path_of(source: Any) -> str | None:
    """Return the file of a path, of an image or of a content, `None` if it has none."""
    if isinstance(source, io.BytesIO):
        return getattr(source, "name", None)
    if isinstance(source, Image.Image):
        return os.fsdecode(getattr(source, "filename", "")) or None
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"an image must be given as a path or a PIL image, not as {source!r}.")
    return os.fspath(source)


def _read(source: Source, transform: ClipTransform) -> Tensor | str:
    """Return an image's pixel values, float32 `[1, 3, H, W]`, or why it cannot be read."""
    path = _path_of(source)
    try:
        if isinstance(source, Image.Image):
            with naming(path), _LOCKS[id(source) % len(_LOCKS)]:
                image = upright(source)
        else:
            with naming(path):
                image = open_image(source)
        return transform({IMAGE: [image]})["pixel_values"]
    except (CorruptImageError, OSError) as error:
        return str(error)
    except MemoryError:
        return f"{path or 'an image without a path'}: too little memory to decode it"


def _ranker(model: PeftModel | CLIPModel | CLIPClassifier | Graph, top_k: int) -> Ranker:
    """Return a function from pixel values `[B, 3, H, W]` to rankings with the classes and the adapter of the call."""
    if isinstance(model, Graph):
        names, logits = model.class_names, model.logits
    elif isinstance(model, CLIPClassifier):
        names, logits = _of_classifier(model)
    else:
        names, logits = _of_adapter(model)

    def rank(pixels: Tensor) -> list[Ranking]:
        shares = logits(pixels).softmax(dim=-1).topk(min(top_k, len(names)))
        rows = zip(*(each.tolist() for each in shares), strict=True)
        return [[(names[at], share) for share, at in zip(*row, strict=True)] for row in rows]

    return rank


def _of_adapter(model: PeftModel | CLIPModel) -> tuple[Sequence[str], Logits]:
    clip = adapted_clip(model)
    classes = clip.classes
    choice = clip.choose()._replace(classes=classes)

    @torch.no_grad()
    def logits(pixels: Tensor) -> Tensor:
        if choice.adapter not in clip.head.configs:
            raise RuntimeError(f"The adapter {choice.adapter!r} was deleted after predict was called.")
        pixels = pixels.to(clip.device)
        with evaluating(model):
            plan = clip.plan(pixel_values=pixels, choice=choice)
            return model(pixel_values=pixels, plan=plan).logits

    return classes.names, logits


def _of_classifier(model: CLIPClassifier) -> tuple[Sequence[str], Logits]:
    asked = model.classes
    return asked.names, lambda pixels: model(pixels.to(model.device), classes=asked).logits
