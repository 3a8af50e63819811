"""Classify image files with a saved adapter.

python examples/digits/classify.py IMAGE [IMAGE ...] [--adapter outputs/digits/adapter] [--classes zero one ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from peft import AutoPeftModel, PeftConfig
from PIL import Image, UnidentifiedImageError
from transformers import CLIPProcessor

import anprompt_peft  # noqa: F401 - registers the method
from adaptation import to_pixels
from handwriting import CLASS_NAMES


def main(arguments: list[str] | None = None) -> int:
    """Print the three most likely classes of every image; return 1 if an image could not be read."""
    parser = argparse.ArgumentParser(description="Classify image files with a saved adapter.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--adapter", type=Path, default=Path("outputs/digits/adapter"), help="adapter folder")
    parser.add_argument("--classes", nargs="+", default=CLASS_NAMES, help="class names (default: the ten digits)")
    options = parser.parse_args(arguments)
    if not (options.adapter / "adapter_config.json").is_file():
        parser.error(f"no adapter in {options.adapter}: run `python3 run.py digits` first, or give --adapter")
    base = PeftConfig.from_pretrained(str(options.adapter)).base_model_name_or_path
    processor = CLIPProcessor.from_pretrained(base)
    model = AutoPeftModel.from_pretrained(options.adapter).eval()
    try:
        model.set_classes(options.classes)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for path in options.images:
        try:
            image = Image.open(path).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            print(f"{path}: cannot be read as an image ({error})", file=sys.stderr)
            failed = 1
            continue
        with torch.no_grad():
            shares = model(pixel_values=to_pixels(processor, [image])).logits[0].softmax(dim=-1)
        best = shares.topk(min(3, len(shares)))
        ranking = [
            f"{options.classes[at]} {share:.1%}" for share, at in zip(*map(torch.Tensor.tolist, best), strict=True)
        ]
        print(f"{path}: {', '.join(ranking)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
