"""What test_distributed.py has two processes do, under torchrun, and does itself on one for comparison.

torchrun --standalone --nproc_per_node 2 tests/distributed_worker.py CLIP_FOLDER DIGITS OUTPUT
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from anprompt_peft import ANPromptConfig
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from helpers import CLASSES, count_calls, make_config, scatter, trainable

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGES = 12
EPOCHS = 3
EVALUATED = (9, 10, 11, 12)
MANY_CLASSES = [*CLASSES, *(f"{name} {number}" for name in ("red bird", "dog") for number in range(15))]
STOP_AFTER = 4


def load_script() -> ModuleType:
    """The Accelerate example as a module."""
    spec = importlib.util.spec_from_file_location("train_accelerate", EXAMPLES / "train_accelerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fresh_accelerator(**settings: Any) -> Accelerator:
    """An Accelerator that knows nothing of the ones before it in this process."""
    forget_accelerators()
    return Accelerator(cpu=True, **settings)


def forget_accelerators(leave_group: bool = False) -> None:
    """Let the next Accelerator choose anew, within the same process group or not."""
    AcceleratorState._reset_state(reset_partial_state=leave_group)
    GradientState._reset_state()


def examples(count: int, size: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Random images of `size` pixels a side with labels."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    return [{"pixel_values": image, "labels": number % len(CLASSES)} for number, image in enumerate(pixels)]


def adapted_model(folder: Path, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """The saved random CLIP with an adapter that has left its initial values."""
    clip = CLIPModel.from_pretrained(folder).to(dtype)
    torch.manual_seed(0)
    alike = {"tokenizer_name_or_path": str(folder), "rephrased_weight": 0.0}  # else each process draws its own texts
    return scatter(get_peft_model(clip, make_config(None, **alike, **settings)))


def train(
    folder: Path,
    batch_size: int,
    accumulate: int = 1,
    shard: bool = False,
    checkpointing: bool = False,
    mixed_precision: str = "no",
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> dict[str, Any]:
    """Train for a few AdamW steps; returns losses, trained weights, texts per encoding and warnings."""
    accelerator = fresh_accelerator(mixed_precision=mixed_precision, gradient_accumulation_steps=accumulate)
    model = adapted_model(folder, dtype, **settings)
    clip = model.get_base_model()
    if checkpointing:
        clip.gradient_checkpointing_enable({"use_reentrant": False})
    model.shard_class_texts(shard)
    texts = count_calls(clip.text_projection)
    optimizer: Any = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    data: Any = examples(IMAGES, clip.config.vision_config.image_size, dtype)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size))
    prepared.train()
    losses = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in chain.from_iterable(loader for _ in range(EPOCHS)):
            with accelerator.accumulate(prepared):
                output = prepared(**batch)
                accelerator.backward(output.loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(accelerator.reduce(output.loss.detach(), "mean").item())
    return {
        "processes": accelerator.num_processes,
        "parallel": isinstance(prepared, DistributedDataParallel),
        "find_unused_parameters": getattr(prepared, "find_unused_parameters", False),
        "loss_dtype": output.loss.dtype,
        "losses": losses,
        "weights": {name: weight.detach() for name, weight in trainable(model).items()},
        "texts": texts,
        "warnings": [str(warning.message) for warning in caught],
    }


def train_fully_sharded(folder: Path, output: Path) -> dict[str, Tensor]:
    """The steps of `train` with PyTorch's FSDP2 applied by hand; returns the adapter as it was saved."""
    rank = distributed.get_rank()
    model = adapted_model(folder, waloss_weight=0.0)
    ignored = {weight for name, weight in model.named_parameters() if name.endswith("logit_scale")}
    for layer in model.modules():
        if isinstance(layer, CLIPEncoderLayer):
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)), ignored_params=ignored)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=ignored)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    data: Any = examples(IMAGES, model.config.vision_config.image_size, torch.float64)
    model.train()
    for step in range(2 * EPOCHS):
        batch = default_collate(data[6 * (step % 2) + 3 * rank :][:3])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True))
    model.save_pretrained(output / "sharded", state_dict=whole, is_main_process=rank == 0)
    distributed.barrier()
    return load_file(output / "sharded" / "adapter_model.safetensors")


def evaluate(folder: Path) -> list[tuple[int, int]]:
    """Right answers and images counted by the example, for numbers of images that do not divide evenly."""
    script, accelerator = load_script(), fresh_accelerator()
    model = adapted_model(folder, torch.float32)
    size = model.config.vision_config.image_size
    prepared = accelerator.prepare(model)
    counts = []
    for images in EVALUATED:
        data: Any = examples(images, size, torch.float32)
        counts.append(script.evaluate(accelerator, prepared, accelerator.prepare(DataLoader(data, 2))))
    return counts


def disagree_before_preparing(folder: Path) -> dict[str, Tensor]:
    """Buffers after `prepare`, where only the first process had computed the right ones."""
    accelerator = fresh_accelerator()
    model = adapted_model(folder)
    if accelerator.process_index:
        for name, buffer in model.named_buffers():
            if "anprompt" in name:
                buffer.add_(1)
    accelerator.prepare(model)
    return {name: buffer for name, buffer in model.named_buffers() if "anprompt" in name}


def forward_different_numbers_of_times(folder: Path) -> int:
    """Batches that this process evaluated, one on the first and three on the second, with sharding asked for."""
    accelerator = fresh_accelerator()
    model = adapted_model(folder, torch.float32, class_names=MANY_CLASSES)
    model.shard_class_texts()
    prepared = accelerator.prepare(model)
    prepared.forward_sync_buffers = False
    batch = torch.randn(2, 3, *[model.config.vision_config.image_size] * 2)
    count = 1 + 2 * accelerator.process_index
    with torch.no_grad():
        for _ in range(count):
            model.train(not model.training)
            prepared(pixel_values=batch)
    return count


def train_with_trainer(folder: Path, output: Path, batch_size: int) -> dict[str, Any]:
    """The logs of two steps of ANPromptTrainer on eight images in their order, and its evaluation of seven."""
    forget_accelerators()
    arguments = ANPromptTrainingArguments(
        str(output), per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size, num_train_epochs=1,
        logging_strategy="steps", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, train_sampling_strategy="sequential", learning_rate=0.01, warmup_epochs=0,
    )  # fmt: skip
    clip = CLIPModel.from_pretrained(folder).double()
    torch.manual_seed(0)
    config = ANPromptConfig(class_names=CLASSES, tokenizer_name_or_path=str(folder), waloss_weight=0.0)
    rows: Any = examples(8, clip.config.vision_config.image_size, torch.float64)
    trainer = ANPromptTrainer(get_peft_model(clip, config), arguments, train_dataset=rows, eval_dataset=rows[:7])
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {"processes": trainer.accelerator.num_processes, "logs": logs, "eval": trainer.evaluate()}


class StoppedError(Exception):
    """Stands for whatever ends a training early."""


def run_script(digits: Path, output: Path, *more: str, stop_after: int | None = None) -> dict[str, Any] | None:
    """Run the example on a few digits; `None` if it was stopped after so many checkpoints."""
    script, saved = load_script(), 0
    save = script.save_newest

    def save_and_stop(*arguments: Any) -> None:
        nonlocal saved
        save(*arguments)
        saved += 1
        if saved == stop_after:
            raise StoppedError

    forget_accelerators()
    arguments = ["--data", str(digits), "--model", str(EXAMPLES / "embedded" / "tiny_clip"), "--output", str(output)]
    arguments += ["--shots", "2", "--epochs", "2", "--batch-size", "2", "--accumulate", "2", *more]
    with (
        mock.patch.object(script, "save_newest", save_and_stop),
        mock.patch.object(PartialState, "destroy_process_group"),
    ):
        try:
            return script.main(arguments)
        except StoppedError:
            return None


def interrupt_and_resume(digits: Path, output: Path) -> dict[str, Any]:
    """The records of an uninterrupted run and of one that was stopped within an epoch and resumed."""
    whole = run_script(digits, output / "whole")
    stopped = run_script(digits, output / "parts", "--save-every", "1", stop_after=STOP_AFTER)
    left = sorted(path.name for path in (output / "parts" / "checkpoints").iterdir())
    return {
        "whole": whole,
        "stopped": stopped,
        "left": left,
        "resumed": run_script(digits, output / "parts", "--resume"),
    }


def main() -> None:
    """Do everything and save what came out, a file for each process."""
    folder, digits, output = map(Path, sys.argv[1:])
    scenarios: dict[str, Callable[[], Any]] = {
        "plain": lambda: train(folder, 3, waloss_weight=0.0),
        "accumulated": lambda: train(folder, 3, accumulate=2, waloss_weight=0.0),
        "waloss": lambda: train(folder, 3, text_update_rank=None),
        "checkpointed": lambda: train(folder, 3, checkpointing=True, waloss_weight=0.0),
        "many": lambda: train(folder, 3, class_names=MANY_CLASSES, waloss_weight=0.0),
        "sharded": lambda: train(folder, 3, shard=True, class_names=MANY_CLASSES, waloss_weight=0.0),
        "sharded_checkpointed": lambda: train(
            folder, 3, shard=True, checkpointing=True, class_names=MANY_CLASSES, waloss_weight=0.0
        ),
        "few_sharded": lambda: train(folder, 3, shard=True, waloss_weight=0.0),
        "bfloat16": lambda: train(folder, 3, mixed_precision="bf16", dtype=torch.float32, waloss_weight=0.0),
        "fully_sharded": lambda: train_fully_sharded(folder, output),
        "evaluate": lambda: evaluate(folder),
        "buffers": lambda: disagree_before_preparing(folder),
        "uneven": lambda: forward_different_numbers_of_times(folder),
        "trainer": lambda: train_with_trainer(folder, output / "trainer", 2),
        "resume": lambda: interrupt_and_resume(digits, output),
    }
    results = {name: scenario() for name, scenario in scenarios.items()}
    torch.save(results, output / f"{PartialState().process_index}.pt")


if __name__ == "__main__":
    main()
