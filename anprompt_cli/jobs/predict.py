"""The job of `anprompt predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from anprompt_peft.serve import Prediction, predict

from ..options import PredictOptions
from .labelled import read_names
from .models import load_adapter


def classify(options: PredictOptions, paths: Sequence[str]) -> Iterable[Prediction]:
    """Load an adapter and classify image files in order, with a progress bar.

    Args:
        options (`PredictOptions`): adapter, classes, templates, classes to rank, batch size and device.
        paths (`Sequence[str]`): the files.

    Raises:
        ValueError: if there is no such adapter, or classes or templates are invalid.
    """
    classes = options.classes or read_names(options.classes_file)
    model, processor = load_adapter(
        options.adapter, options.revision, options.device, options.precision, options.model
    )
    if classes or options.template:
        model.set_classes(classes or model.class_names, options.template)
    predictions = predict(model, paths, processor, top_k=options.top_k, batch_size=options.batch_size)
    return tqdm(predictions, total=len(paths), unit="image", disable=sys.stdout.isatty() or None)
