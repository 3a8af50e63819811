"""Make a tiny CLIP of 12 layers out of the shipped one of 4: 15 minutes on two cores.

    python examples/embedded/deepen.py --output DIR

The new layers begin as copies that add nothing, and learn in 400 steps. README.md says what this CLIP can tell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anprompt_peft.files import to_json
from pretrain_embedded import TINY_CLIP, run
from tiny import Recipe

DEEP = Recipe(steps=400, icons=96, digits=24, letters=8, learning_rate=5e-4, layers=12)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a tiny CLIP of 12 layers.")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; must be absent or empty")
    try:
        record = run(parser.parse_args().output, DEEP, seed=0, start=TINY_CLIP)
    except FileExistsError as error:
        parser.error(str(error))
    print(to_json(record), end="")


if __name__ == "__main__":
    main()
