"""Classify image files with a saved adapter: its own classes, or any others.

python examples/load_and_predict.py ADAPTER IMAGE_OR_FOLDER ... [--classes NAME ...] [--top-k 3]

ADAPTER is a folder that `model.save_pretrained(...)` wrote, or the id of such a repository on the Hub.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModel
from PIL import Image
from transformers import CLIPProcessor

from anprompt_peft.serve import predict  # also registers the method


def main(arguments: list[str] | None = None) -> int:
    """Print the most likely classes of every image; return 1 if an image could not be read."""
    options = parse(arguments)
    model: Any = AutoPeftModel.from_pretrained(options.adapter)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = CLIPProcessor.from_pretrained(model.get_base_model().name_or_path)
    model.set_classes(options.classes)
    failed = False
    for result in predict(model, options.images, processor, top_k=options.top_k):
        if result.error:
            print(f"error: {result.error}", file=sys.stderr)
            failed = True
        else:
            print(f"{result.path}: {', '.join(f'{name} {share:.1%}' for name, share in result.ranking)}")
    return int(failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; folders become the image files in them."""
    parser = argparse.ArgumentParser(description="Classify image files with a saved adapter.")
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="class names (default: the adapter's own)")
    parser.add_argument("--top-k", type=int, default=3, help="classes to print per image (default: 3)")
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        parser.error(f"--top-k must be at least 1, got {options.top_k}")
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    images: list[Path] = []
    for path in options.images:
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes]
        if path.is_dir() and not inside:
            parser.error(f"no images in the folder {path}")
        images += inside if path.is_dir() else [path]
    options.images = images
    return options


if __name__ == "__main__":
    sys.exit(main())
