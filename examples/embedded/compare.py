"""Compare ANPrompt with other methods on digits and icons: a part of the embedded suite, and a page of the result.

    python examples/embedded/compare.py [--output outputs/compare] [--seeds 1-4] [--jobs 2]

Runs the grid of compare.yaml, prints its tables and writes page.html beside the cells. A second run measures only what
is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from anprompt_cli import main as anprompt

FOLDER = Path(__file__).resolve().parent
GRID = FOLDER / "compare.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Run the grid and report it; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare ANPrompt with other methods on digits and icons.")
    parser.add_argument("--output", type=Path, default=Path("outputs/compare"), help="folder of the cells")
    parser.add_argument("--seeds", default="1-4", help="a range, of halves, shots and training")
    parser.add_argument("--jobs", default="2", help="processes")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    os.environ["PYTHONPATH"] = str(FOLDER)  # where every process finds the data sets
    sys.path.append(str(FOLDER))
    os.chdir(FOLDER)  # where the grid finds the CLIP and its denoiser
    page = output / "page.html"
    grid = [f"--config={GRID}", f"--output={output}", f"--seeds={options.seeds}", f"--jobs={options.jobs}"]
    code = anprompt(["benchmark", *grid]) or anprompt(["benchmark", "report", str(output), f"--html={page}"])
    if not code:
        print(f"Written to {options.output}/: {page.name}, results.jsonl, a folder for each cell")
    return code


if __name__ == "__main__":
    sys.exit(main())
