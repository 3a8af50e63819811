"""The job of `anprompt predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from anprompt_peft.serve import Prediction, predict

from .models import load_adapter
from .options import Device


def classify(
    adapter: str,
    revision: str | None,
    device: Device,
    paths: Sequence[str],
    classes: list[str] | None,
    template: list[str] | None,
    top_k: int,
    batch_size: int,
) -> Iterable[Prediction]:
    """Load an adapter and classify image files in order, with a progress bar.

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
    predictions = predict(model, paths, processor, top_k=top_k, batch_size=batch_size)
    return tqdm(predictions, total=len(paths), unit="image", disable=sys.stdout.isatty() or None)
