"""What sharing the class texts among processes saves per training step, by number of classes.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/text_sharding.py [--size vit-b16]

A CLIP with random weights is trained under DistributedDataParallel, on the GPUs if there are any, with steps of both
kinds in turn: every process encodes all class texts, or each takes its share. Prints a table and writes
text_sharding.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import distributed

import anprompt_peft.fast.sharding
from measuring import Setting, interleave, parser_for, positive, ratios, read_setting, spread
from processes import parallel_steps
from reporting import run, table, with_range
from workload import make_adapted, make_clip, make_workload

COLUMNS = ["classes", "each all (s)", "each a share (s)", "speed-up"]
IMAGE_SIZES = {"small": 112, "vit-b16": 224}


def main(arguments: list[str] | None = None) -> None:
    """Measure every number of classes on all processes; the first one reports."""
    options, setting = parse(arguments)
    setting.begin()
    distributed.init_process_group("nccl" if setting.device == "cuda" else "gloo")
    if setting.device == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
    anprompt_peft.fast.sharding.SHARD_FROM = 1

    def measure_one(classes: int) -> dict[str, Any]:
        return measure(classes, options.size, options.batch, setting)

    def content(rows: list[Any]) -> dict[str, Any]:
        world = {"processes": distributed.get_world_size(), "backend": distributed.get_backend()}
        return {"rows": rows, "size": options.size, "batch": options.batch, **world}

    if distributed.get_rank():
        for classes in options.classes:
            measure_one(classes)
    else:
        run("text_sharding", options, setting, options.classes, measure_one, report, content)
    distributed.destroy_process_group()


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("text_sharding", __doc__, dtype="float32", threads=1)
    parser.add_argument("--classes", type=positive, nargs="+", default=[10, 50, 100, 500, 1000])
    parser.add_argument("--size", choices=IMAGE_SIZES, default="small", help="of the CLIP (default small)")
    parser.add_argument("--batch", type=positive, default=4, help="images per process (default 4)")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def measure(classes: int, size: str, batch: int, setting: Setting) -> dict[str, Any]:
    """Seconds of steps of both kinds, and the ratios of steps of the same round."""
    work = make_workload(classes, batch, IMAGE_SIZES[size]).to(setting.device)
    clip = make_clip() if size == "vit-b16" else make_clip(tower(256), {**tower(384), "image_size": 112}, 256)
    steps = parallel_steps(make_adapted(work, clip, random_targets=True), work)
    whole, shared = interleave(steps, setting).values()
    return {
        "classes": classes,
        "whole": spread(whole),
        "shared": spread(shared),
        "speedup": ratios(whole, shared),
        "all_seconds": {"whole": whole, "shared": shared},
    }


def tower(width: int) -> dict[str, int]:
    """The sizes of one tower of the small CLIP: 8 layers of this width."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 8,
        "num_attention_heads": width // 64,
    }


def report(record: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [f"{row['classes']:,}", *(with_range(row[name], ".3f") for name in ("whole", "shared", "speedup"))]
        for row in record["rows"]
    ]
    title = f"{record['size']} CLIP, {record['processes']} processes over {record['backend']}"
    return f"{title}, {record['batch']} images each\n\n{table(COLUMNS, rows)}"


if __name__ == "__main__":
    main()
