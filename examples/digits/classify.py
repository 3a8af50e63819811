"""Classify image files with a saved adapter.

python examples/digits/classify.py IMAGE [IMAGE ...] [--adapter outputs/digits/adapter] [--classes zero one ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peft import AutoPeftModel, PeftConfig
from transformers import CLIPProcessor

from anprompt_peft.serve import predict  # also registers the method
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
    model = AutoPeftModel.from_pretrained(options.adapter)
    try:
        model.set_classes(options.classes)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for result in predict(model, options.images, processor, top_k=3):
        if result.error:
            print(f"error: {result.error}", file=sys.stderr)
            failed = 1
        else:
            print(f"{result.path}: {', '.join(f'{name} {share:.1%}' for name, share in result.ranking)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
