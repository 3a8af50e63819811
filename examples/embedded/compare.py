"""Compare ANPrompt with other methods on digits and icons: a part of the embedded suite, and a page of the result.

    python examples/embedded/compare.py [--output outputs/compare] [--seeds 1-4] [--jobs 2]

Runs the grid of compare.yaml, writes page.html, picture.svg and tables.md beside the cells, and prints the answer. A
second run measures only what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from anprompt_cli import main as anprompt
from anprompt_peft.evaluation.grid import rank_all, read_results, sentence, summarise
from anprompt_peft.files import atomic_file
from anprompt_peft.report.benchmark import write_benchmark, write_poster

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
    grid = [f"--config={GRID}", f"--output={output}", f"--seeds={options.seeds}", f"--jobs={options.jobs}"]
    if code := anprompt(["benchmark", *grid]):
        return code
    summaries = summarise(read_results(output))
    write_benchmark(summaries, "anprompt", output / "page.html")
    write_poster(summaries, output / "picture.svg")
    with atomic_file(output / "tables.md") as fresh, fresh.open("w") as file, redirect_stdout(file):
        anprompt(["benchmark", "report", str(output)])
    print(*(sentence(each) for summary in summaries for each in rank_all(summary)), sep="\n")
    print(f"Written to {options.output}/: page.html, picture.svg, tables.md, results.jsonl, a folder for each cell")
    return 0


if __name__ == "__main__":
    sys.exit(main())
