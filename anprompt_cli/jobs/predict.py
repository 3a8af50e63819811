"""The job of `anprompt predict`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from anprompt_peft.data.folders import is_hidden, list_folder
from anprompt_peft.data.names import read_class_names
from anprompt_peft.serve import Prediction, predict

from ..predict import PredictOptions
from .models import load_adapter


def classify(options: PredictOptions, paths: Sequence[str]) -> Iterable[Prediction]:
    """Load an adapter and classify image files in order, with a progress bar."""
    classes = read_class_names(options.classes_file) if options.classes_file else options.classes
    model, processor = load_adapter(
        options.adapter, options.revision, options.device, options.precision, options.model
    )
    if classes or options.template:
        model.set_classes(classes or model.class_names, options.template)
    predictions = predict(model, paths, processor, top_k=options.top_k, batch_size=options.batch_size)
    return tqdm(predictions, total=len(paths), unit="image", disable=sys.stdout.isatty() or None)


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
