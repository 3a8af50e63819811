"""The job of `anprompt predict`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from anprompt_peft.data.folders import is_hidden, list_folder
from anprompt_peft.data.names import read_class_names
from anprompt_peft.serve import Prediction, predict

from ..choices import Precision
from ..options import AskOptions, RunOptions
from ..predict import UNSURE, PredictOptions, threshold_of
from .answers import calibrated
from .models import load_adapter
from .sorting import Sorter


class Classifier:
    """The adapters that are asked for, with their classes, and the threshold of their answers.

    Attributes:
        classes (`list[str]`): those of the first adapter.
        threshold (`float`, *optional*): probability below which an answer is unsure.
    """

    def __init__(self, options: PredictOptions) -> None:
        self._options = options
        adapters = (options.adapter, *(options.also or ()))
        self._loaded = [load_asked(adapter, options, options, options.precision) for adapter in adapters]
        self.classes = list(self._loaded[0][0].class_names)
        self.threshold = self._threshold()
        if self.threshold is not None and any(UNSURE in model.class_names for model, _ in self._loaded):
            raise ValueError(f"--threshold answers {UNSURE}, and a class is called so. Give it another name.")

    def _threshold(self) -> float | None:
        if self._options.threshold is None:
            return None
        share = threshold_of(self._options.threshold)[0]
        if self._options.calibrate is None:
            return share
        found = calibrated(self._options.calibrate, share, self.classes)
        print(
            f"Threshold {found:.4g}: {share:.1%} of the answers on held-out images are right above.", file=sys.stderr
        )
        return found

    def sorter(self) -> Sorter | None:
        """Return what puts files into folders, if that is asked for."""
        folder = self._options.move_to or self._options.copy_to
        answers = [*self.classes, *([UNSURE] if self.threshold is not None else [])]
        return Sorter(folder, answers, move=self._options.move_to is not None) if folder else None

    def classify(self, paths: Sequence[str]) -> Iterable[tuple[Prediction, ...]]:
        """Classify image files in order with every adapter, with a progress bar."""
        options = self._options
        each = [
            predict(model, paths, processor, top_k=options.top_k, batch_size=options.batch_size)
            for model, processor in self._loaded
        ]
        together = zip(*each, strict=True)
        return tqdm(together, total=len(paths), unit="image", disable=sys.stdout.isatty() or None)


def load_asked(adapter: str, ask: AskOptions, run: RunOptions, precision: Precision) -> tuple[Any, Any]:
    """Load an adapter with the classes and templates that are asked for; return it and its image processor."""
    model, processor = load_adapter(adapter, ask.revision, run.device, precision, ask.model)
    asked = read_class_names(ask.classes_file) if ask.classes_file else ask.classes
    if asked or ask.template:
        model.set_classes(asked or model.class_names, ask.template)
    return model, processor


def find_images(patterns: Sequence[str]) -> list[str]:
    """Return the files meant by paths, folders and globs, in that order, each group sorted.

    A file that is named itself is always meant. What is left out of a folder or glob is printed on standard error.
    """
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            listing = list_folder(path)
            found = [str(path / image) for image in sorted(listing.images, key=lambda image: image.split("/"))]
            left_out = listing.left_out()
            missing = f"There are no images in the folder {pattern}. {left_out}".strip()
        else:
            names = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
            matched = [name for name in names if not Path(name).is_dir()]
            found = [name for name in matched if not _is_hidden(name, path)]
            hidden = len(matched) - len(found)
            left_out = f"Left out of {pattern}: hidden {hidden}." if hidden else ""
            missing = f"There is no file {pattern}. {left_out}".strip()
        if not found:
            raise FileNotFoundError(missing)
        if left_out:
            print(left_out, file=sys.stderr)
        files += found
    return files


def _is_hidden(name: str, pattern: Path) -> bool:
    """Whether a file that a glob found is hidden, or in a hidden folder, that the glob does not name."""
    *folders, file = Path(name).parts
    named = set(pattern.parts)
    return any(is_hidden(part, True) for part in folders if part not in named) or (
        file not in named and is_hidden(file, False)
    )
