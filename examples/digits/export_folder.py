"""Write the handwritten digits as a folder of images, one sub-folder per class, as users have them.

    python examples/digits/export_folder.py FOLDER [--limit 20]

FOLDER/train/<class>/*.png holds the few-shot pool and FOLDER/test/<class>/*.png the held-out images.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from anprompt_peft.files import atomic_folder
from handwriting import CLASS_NAMES, load_split


def main(arguments: list[str] | None = None) -> Counter[str]:
    """Write the folder and return the number of images in each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to make; must be absent or empty")
    parser.add_argument("--limit", type=int, help="most images per class and split (default: all)")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit {options.limit} must be at least 1")
    try:
        written = export(options.folder, options.limit)
    except FileExistsError as error:
        parser.error(str(error))
    print(f"Written to {options.folder}/: {', '.join(f'{count} {split}' for split, count in written.items())} images")
    return written


def export(folder: Path, limit: int | None = None) -> Counter[str]:
    """Write the splits `train` and `test` to a new folder and return the number of images in each."""
    written: Counter[str] = Counter()
    with atomic_folder(folder.resolve()) as fresh:
        for split in ("train", "test"):
            counts: Counter[int] = Counter()
            for image, label in zip(*load_split(split), strict=True):
                if limit is None or counts[label] < limit:
                    target = fresh / split / CLASS_NAMES[label]
                    target.mkdir(parents=True, exist_ok=True)
                    image.save(target / f"{counts[label]:03d}.png")
                    counts[label] += 1
            written[split] = counts.total()
    return written


if __name__ == "__main__":
    main()
