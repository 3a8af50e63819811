"""What sharing the class texts among processes saves per training step, by number of classes.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/text_sharding.py [--size vit-b16]

A CLIP with random weights is trained under DistributedDataParallel, on the GPUs if there are any, with steps of both
kinds in turn: every process encodes all class texts, or each takes its share. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel

import anprompt_peft.fast.sharding
from anprompt_peft import ANPromptConfig
from anprompt_peft.files import to_json, whole_file
from anprompt_peft.provenance import provenance

BOS, EOS, VOCABULARY = 0, 1, 1000
OPENING = 5  # tokens: all texts begin with "a photo of a"


@dataclass(frozen=True)
class Size:
    """Width and layers of both towers, pixels of an image's side and of a patch's."""

    text: tuple[int, int]
    vision: tuple[int, int]
    image: int
    patch: int
    projection: int


SIZES = {
    "small": Size((256, 8), (384, 8), 112, 16, 256),
    "vit-b16": Size((512, 12), (768, 12), 224, 16, 512),
}


def main() -> None:
    """Measure every number of classes, print the table and write the record."""
    options = parse()
    device = start()
    main_process = distributed.get_rank() == 0
    anprompt_peft.fast.sharding.SHARD_FROM = 1
    rows = []
    for classes in options.classes:
        model = build(SIZES[options.size], classes, options.tokens).to(device)
        seconds = measure(model, options.steps, options.batch_size, SIZES[options.size].image, classes, main_process)
        rows.append({"classes": classes, **summary(seconds)})
    if main_process:
        report(rows, options)
    distributed.destroy_process_group()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 50, 100, 500, 1000], help="numbers of classes")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the CLIP (default small)")
    parser.add_argument("--batch-size", type=int, default=4, help="images per process (default 4)")
    parser.add_argument("--tokens", type=int, default=10, help="tokens of a class text (default 10)")
    parser.add_argument("--steps", type=int, default=11, help="steps of each kind (default 11)")
    parser.add_argument("--output", type=Path, default=Path("outputs/text_sharding.json"), help="file to write")
    return parser.parse_args()


def start() -> torch.device:
    """Join the process group and return this process's device."""
    if not torch.cuda.is_available():
        distributed.init_process_group("gloo")
        return torch.device("cpu")
    distributed.init_process_group("nccl")
    torch.cuda.set_device(distributed.get_node_local_rank())
    return torch.device("cuda", torch.cuda.current_device())


def build(size: Size, classes: int, tokens: int) -> Any:
    """An adapted CLIP with random weights and random class texts."""
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                **tower(*size.text), "vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS,
            },
            vision_config={**tower(*size.vision), "image_size": size.image, "patch_size": size.patch},
            projection_dim=size.projection,
        )
    )  # fmt: skip
    config = ANPromptConfig(class_names=[f"class {number}" for number in range(classes)], init_noise_prompts=False)
    model = get_peft_model(clip, config)
    ids = torch.randint(2, VOCABULARY, (classes, tokens))
    ids[:, :OPENING] = ids[0, :OPENING]
    ids[:, 0], ids[:, -1] = BOS, EOS
    features = torch.nn.functional.normalize(torch.randn(2 * classes + config.num_noise_tokens, size.projection))
    clean, perturbed, noise = features.split([classes, classes, config.num_noise_tokens])
    clip.visual_projection.fill("default", noise, clean, perturbed, ids)
    return model.train()


def tower(width: int, layers: int) -> dict[str, int]:
    """The settings that CLIP's towers have in common."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }


def measure(model: Any, steps: int, batch_size: int, image: int, classes: int, show: bool) -> dict[bool, list[float]]:
    """Seconds of each step without and with sharding, in turn, after one unmeasured step of each."""
    device = model.device
    pixels = torch.randn(batch_size, 3, image, image, device=device)
    labels = torch.arange(batch_size, device=device) % classes
    parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    parallel.forward_sync_buffers = False
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in tqdm(range(2 * (steps + 1)), desc=f"{classes} classes", disable=not show):
        shard = step % 2 == 1
        model.shard_class_texts(shard)
        synchronize(device)
        started = time.perf_counter()
        parallel(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        if step > 1:
            seconds[shard].append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait for the device and the other processes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    distributed.barrier()


def summary(seconds: dict[bool, list[float]]) -> dict[str, float]:
    """Medians in milliseconds, and the median of the ratios of neighbouring steps with their quartiles."""
    ratios = [whole / shared for whole, shared in zip(seconds[False], seconds[True], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "whole_ms": 1000 * statistics.median(seconds[False]),
        "sharded_ms": 1000 * statistics.median(seconds[True]),
        "speedup": median,
        "speedup_lower_quartile": low,
        "speedup_upper_quartile": high,
    }


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the record."""
    record = {
        "task": "seconds per training step with all class texts on every process, and with a share on each",
        "processes": distributed.get_world_size(),
        "backend": distributed.get_backend(),
        "size": asdict(SIZES[options.size]),
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "rows": rows,
        **provenance(),
    }
    with whole_file(options.output) as path:
        path.write_text(to_json(record))
    print(f"{'classes':>8}{'whole (ms)':>12}{'shared (ms)':>13}{'speed-up':>10}  [quartiles]")
    for row in rows:
        times = f"{row['classes']:>8}{row['whole_ms']:>12.1f}{row['sharded_ms']:>13.1f}"
        quartiles = f"[{row['speedup_lower_quartile']:.2f}, {row['speedup_upper_quartile']:.2f}]"
        print(f"{times}{row['speedup']:>10.2f}  {quartiles}")
    print(f"Written to {options.output}")


if __name__ == "__main__":
    main()
