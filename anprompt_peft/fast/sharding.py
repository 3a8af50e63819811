"""Training on several processes: class texts encoded in shards, and what the model cannot be trained with."""

from __future__ import annotations

import os

import torch
from torch import Tensor, distributed

SHARD_FROM = 32
"""Number of class texts from which sharing the work is faster than each process doing all of it."""

WEIGHT_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def refuse_weight_sharding() -> None:
    """Raise if Accelerate was told, at launch or by a plugin, to shard the model's weights.

    `examples/speed/README.md` says what fails under each of them. Accelerate itself silently falls back to plain data
    parallelism for FSDP on CPUs.

    Raises:
        NotImplementedError: under FSDP, DeepSpeed or Megatron-LM.
    """
    for engine in WEIGHT_SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise NotImplementedError(
                f"ANPrompt does not train under Accelerate's {engine}. CLIP is frozen and the adapter small, so plain "
                "data parallelism needs no more memory than one process: launch with --multi_gpu."
            )


def worth_sharding(texts: int) -> bool:
    """Return whether there are other processes, and enough texts that sharing them saves time."""
    if texts < SHARD_FROM or not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size() > 1


def own_shard(rows: Tensor) -> Tensor:
    """Return this process's of the equal shards of rows `[n, ...]`, the last of them filled up with the first row."""
    rank, size, count = distributed.get_rank(), distributed.get_world_size(), len(rows)
    shard = -(-count // size)
    filled = torch.cat([rows, rows[:1].expand(shard * size - count, *rows.shape[1:])])
    return filled[rank * shard :][:shard]


def gather_shards(features: Tensor, count: int) -> Tensor:
    """Return the features `[n, d]` of all `count` rows from those of every process's own shard.

    Every process of the default group must call this at the same time. Gradients of all processes reach the shard
    that they belong to, summed; where processes average their gradients afterwards, as in `DistributedDataParallel`,
    they come out as if each had encoded all rows.
    """
    from torch.distributed import _functional_collectives as collectives  # absent from torch without distributed

    group = distributed.group.WORLD
    assert group is not None
    if not hasattr(collectives, "all_gather_single"):  # older releases of torch
        return collectives.all_gather_tensor_autograd(features.contiguous(), 0, group)[:count]
    gathered = collectives.all_gather_single(features.contiguous(), 0, group)
    return collectives.wait_tensor(gathered)[:count]
