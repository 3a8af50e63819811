"""The grid of `anprompt benchmark` on Ray: the same cells in the same folder, with the same results.

    python examples/ray_grid.py --data IMAGES --method zero-shot --method coop --model MODEL --output grid
    anprompt benchmark report grid

On a cluster (`--address auto`) the images, the model and the output lie in a folder that all nodes see, given by an
absolute path. Present cells are skipped; a cell whose worker dies is run once more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from anprompt_peft.evaluation.grid import Cell, Failed, RunEnvironment, Setup, is_done, make_cells, run_cell
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.extras import extra

with extra("ray"):
    import ray


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run a grid of data sets, methods and seeds on Ray.")
    parser.add_argument("--data", action="append", required=True, help="data set; repeat it")
    parser.add_argument("--root", help="folder that holds the catalog's data sets")
    parser.add_argument("--method", action="append", required=True, help="preset or module:Class; repeat it")
    parser.add_argument("--model", default="openai/clip-vit-base-patch16")
    parser.add_argument("--protocol", default="base-to-new")
    parser.add_argument("--halves", default="order")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--address", help="of a cluster; by default Ray starts on this machine")
    parser.add_argument("--workers", type=int, help="processors that Ray may use on this machine; by default all")
    parser.add_argument("--gpus", type=float, default=0, help="share of a GPU for each cell; 0 computes on the CPU")
    return parser.parse_args(arguments)


def run_on_ray(cells: Sequence[Cell], place: RunEnvironment, gpus: float = 0) -> list[Failed]:
    """Run the cells that are not there yet, each as a task with one processor, and return those that failed."""
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(run_cell)
    waiting = [cell for cell in cells if not is_done(place.output, cell)]
    cell_of = {task.remote(cell, place): cell for cell in waiting}
    pending, failed = list(cell_of), []
    with tqdm(total=len(cells), initial=len(cells) - len(waiting), unit="cell") as bar:
        while pending:
            (done,), pending = ray.wait(pending)
            try:
                failure = ray.get(done)
            except ray.exceptions.RayError as error:  # the worker died
                failure = Failed(cell_of[done], " ".join(str(error).split()), str(error))
            failed += [failure] if failure else []
            bar.update()
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a grid and return 1 if a cell failed."""
    options = parse(arguments)
    setup = Setup(options.model, options.protocol, options.shots, options.halves)
    methods = {name: partial(make_method, name) for name in options.method}
    place = RunEnvironment(options.output.resolve(), options.root, "cuda" if options.gpus else "cpu")
    ray.init(options.address, num_cpus=options.workers, log_to_driver=False)
    failed = run_on_ray(make_cells(setup, options.data, methods, options.seeds), place, options.gpus)
    for each in failed:
        print(f"failed: {each.cell}: {each.error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
