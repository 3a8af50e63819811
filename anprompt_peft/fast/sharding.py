"""Training on several processes: class texts encoded in shards, and what the model cannot be trained with."""

from __future__ import annotations

import os
from collections.abc import Callable

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


def in_shards(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return `encode(rows)`, computed in equal shards by the processes of the default group.

    Every process must call this at the same time with the same rows. Gradients of all processes reach the shard that
    they belong to, summed; where processes average their gradients afterwards, as in `DistributedDataParallel`, they
    come out as if each had encoded all rows.

    Args:
        encode (callable): maps rows `[n, ...]` to features `[n, d]`, each row by itself.
        rows (`Tensor`): `[n, ...]`.

    Returns:
        `Tensor`: `[n, d]`, the same on all processes.
    """
    from torch.distributed import _functional_collectives as collectives  # absent from torch without distributed

    group = distributed.group.WORLD
    assert group is not None
    count = len(rows)
    shard = -(-count // group.size())
    filled = torch.cat([rows, rows[:1].expand(shard * group.size() - count, *rows.shape[1:])])
    features = encode(filled[group.rank() * shard :][:shard])
    if not hasattr(collectives, "all_gather_single"):  # older releases of torch
        return collectives.all_gather_tensor_autograd(features.contiguous(), 0, group)[:count]
    gathered = collectives.all_gather_single(features.contiguous(), 0, group)
    return collectives.wait_tensor(gathered)[:count]
