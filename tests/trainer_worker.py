"""Trains with ANPromptTrainer in one of several processes, or alone: `trainer_worker.py CLIP OUTPUT BATCH`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import CLIPModel

from anprompt_peft import ANPromptConfig
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments


def main(clip: str, output: str, batch: str) -> None:
    """Train two steps on eight images in their order, evaluate on seven, write the logs of the first process."""
    torch.manual_seed(0)
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows: Any = [{"pixel_values": each, "labels": at % 3} for at, each in enumerate(pixels)]
    config = ANPromptConfig(class_names=["cat", "dog", "small fish"], waloss_weight=0.0)
    arguments = ANPromptTrainingArguments(
        output, per_device_train_batch_size=int(batch), per_device_eval_batch_size=int(batch), num_train_epochs=1,
        logging_strategy="steps", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, train_sampling_strategy="sequential", learning_rate=0.01, warmup_epochs=0,
    )  # fmt: skip
    model: Any = get_peft_model(CLIPModel.from_pretrained(clip).double(), config)
    trainer = ANPromptTrainer(model, arguments, train_dataset=rows, eval_dataset=rows[:7])
    assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        record = {"processes": trainer.accelerator.num_processes, "logs": trainer.state.log_history, "eval": metrics}
        Path(output, "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
