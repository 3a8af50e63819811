"""Classifies images from any source in batches, decoding the next ones while the model computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.images import IMAGE, CorruptImageError, RGBImage, naming, to_rgb
from ..data.transform import ClipTransform
from ..method.features import evaluating
from ..tuner import adapted_clip

Source = str | os.PathLike[str] | Image.Image
T = TypeVar("T")

_LOCKS = [Lock() for _ in range(61)]
"""By id: Pillow reads an opened image on first use, and two threads that read the same one would garble it."""


@dataclass(frozen=True)
class Prediction:
    """What became of one image.

    Attributes:
        path (`str`, *optional*): its file; `None` for an image that was not opened from one.
        ranking (`list[tuple[str, float]]`): the most likely classes with their probabilities (0..1), the first the
            most likely; empty if the image could not be read.
        error (`str`, *optional*): why it could not be read.
    """

    path: str | None
    ranking: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None


def predict(
    model: Any,
    images: Iterable[Source],
    processor: Any,
    *,
    top_k: int = 1,
    batch_size: int = 16,
    workers: int | None = None,
) -> Iterator[Prediction]:
    """Classify images in order, while threads decode the batch after the one that the model computes.

    The classes and the adapter, or its being disabled, are those at the call. The model always predicts in evaluation
    mode, and outside its forward pass is in the mode the caller left it in.

    `images` is read in the caller's thread, as the predictions are asked for: no further than one batch past the one
    whose predictions come next, two on a GPU. So it may be endless. Images are decoded upright (EXIF rotation
    applied), as `RGBImage` and `ClipTransform` do.

    Args:
        model (`PeftModel` or `ANPromptCLIPModel`): the adapted model.
        images (`Iterable`): paths and PIL images, mixed as you like.
        processor (`CLIPProcessor` or CLIP image processor): gives size, crop, resampling, mean and std.
        top_k (`int`): classes to rank per image; all of them if there are fewer.
        batch_size (`int`): images per forward pass.
        workers (`int`, *optional*): threads that decode; defaults to the number of processors, or `batch_size` if
            that is less. They end with the last prediction, an error, or when the iterator is closed or dropped.

    Returns:
        `Iterator[Prediction]`: one per image. An image that cannot be read has an `error`, and the others go on.

    Raises:
        TypeError: if the model carries no ANPrompt adapter, or something is neither path nor image. What a list or
            tuple holds is checked at the call, anything else when it is read.
        ValueError: if a number is not a whole one of at least 1, no adapter is active, or the processor is not
            CLIP's.
        RuntimeError: from the iterator, if another adapter was chosen, or it was disabled or enabled, since the call.
    """
    numbers = {"top_k": top_k, "batch_size": batch_size, **({} if workers is None else {"workers": workers})}
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name}={number!r} must be a whole number of at least 1.")
    if isinstance(images, str) or not isinstance(images, Iterable):
        raise TypeError(f"images={images!r} must be a list or another iterable of paths and PIL images.")
    if isinstance(images, (list, tuple)):
        for image in images:
            _path_of(image)
    classifier, transform = _Classifier(model, top_k), ClipTransform(processor)
    return _predictions(classifier, images, transform, batch_size, workers or min(batch_size, os.cpu_count() or 1))


def _predictions(
    classifier: _Classifier, images: Iterable[Source], transform: ClipTransform, batch_size: int, workers: int
) -> Iterator[Prediction]:
    source = iter(images)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="anprompt-predict")

    def submit_batch() -> list[Future[_Read]]:
        return [pool.submit(_read, image, _path_of(image), transform) for image in islice(source, batch_size)]

    try:
        reads = ([each.result() for each in batch] for batch in _one_ahead(iter(submit_batch, [])))
        answers = map(classifier.queue, reads)
        for answer in _one_ahead(answers) if classifier.is_asynchronous else answers:
            yield from answer()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Give each item when the next one has been drawn."""
    held: list[T] = []
    for item in items:
        yield from held
        held = [item]
    yield from held


def _path_of(source: Any) -> str | None:
    """Return the file of a path or of an image, `None` if it has none."""
    if isinstance(source, Image.Image):
        return os.fsdecode(getattr(source, "filename", "")) or None
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(path, str):
        raise TypeError(f"an image must be given as a path or a PIL image, not as {source!r}.")
    return path


class _Read(NamedTuple):
    """An image as pixel values, float32 `[1, 3, H, W]`, or why it could not be read."""

    path: str | None
    pixels: Tensor | None = None
    error: str | None = None


def _read(source: Source, path: str | None, transform: ClipTransform) -> _Read:
    try:
        return _Read(path, transform({IMAGE: [_decode(source, path)]})["pixel_values"])
    except (CorruptImageError, OSError) as error:
        return _Read(path, error=str(error))


def _decode(source: Source, path: str | None) -> Image.Image:
    if not isinstance(source, Image.Image):
        return RGBImage().decode_example({"path": path, "bytes": None})
    with naming(path), _LOCKS[id(source) % len(_LOCKS)]:
        return to_rgb(ImageOps.exif_transpose(source))


class _Classifier:
    """Ranks the classes that a model has now, with the adapter that is active now."""

    def __init__(self, model: Any, top_k: int) -> None:
        self.model, self.clip = model, adapted_clip(model)
        self.classes = self.clip.classes
        self.adapter = self._adapter_now()
        self.top_k = min(top_k, len(self.classes.names))

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device computes while the host goes on."""
        return self.clip.device.type == "cuda"

    def queue(self, batch: list[_Read]) -> Callable[[], Iterator[Prediction]]:
        """Start on a batch, and return a function that waits for its predictions."""
        rows = [each.pixels for each in batch if each.pixels is not None]
        rank = self._compute(torch.cat(rows)) if rows else lambda: []

        def predictions() -> Iterator[Prediction]:
            rankings = iter(rank())
            for each in batch:
                yield Prediction(each.path, [] if each.pixels is None else next(rankings), each.error)

        return predictions

    @torch.no_grad()
    def _compute(self, pixels: Tensor) -> Callable[[], list[list[tuple[str, float]]]]:
        if self.is_asynchronous:
            pixels = pixels.pin_memory()
        with self._as_at_the_call():
            logits = self.model(pixel_values=pixels.to(self.clip.device, non_blocking=self.is_asynchronous)).logits
        best = logits.softmax(dim=-1).topk(self.top_k)
        shares, indices = (each.to("cpu", non_blocking=self.is_asynchronous) for each in best)
        done = torch.cuda.current_stream(logits.device).record_event() if self.is_asynchronous else None

        def rankings() -> list[list[tuple[str, float]]]:
            if done is not None:
                done.synchronize()
            names = self.classes.names
            rows = zip(indices.tolist(), shares.tolist(), strict=True)
            return [[(names[at], share) for at, share in zip(*row, strict=True)] for row in rows]

        return rankings

    @contextmanager
    def _as_at_the_call(self) -> Iterator[None]:
        """Put the model into evaluation mode and give it the classes of the call, for a forward pass."""
        if self._adapter_now() != self.adapter:
            raise RuntimeError(
                "The model's adapter was changed, disabled or enabled after predict was called. Take all predictions "
                "first (list(predict(...)), also within `with model.disable_adapter():`), or call predict again."
            )
        state = self.clip.anprompt_state
        asked = state.classes
        try:
            if self.clip.classes is not self.classes:
                state.classes = self.classes
            with evaluating(self.model):
                yield
        finally:
            state.classes = asked

    def _adapter_now(self) -> tuple[str, bool]:
        head = self.clip.visual_projection
        return head.adapter, head.disable_adapters
