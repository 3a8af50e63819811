"""One adaptation run: shots in, a trained adapter and its predictions out."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, PrinterCallback, set_seed

from anprompt_peft import ANPromptConfig
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments


@dataclass(frozen=True)
class Settings:
    """Settings of the adaptation.

    Attributes:
        recipe: of `ANPromptTrainingArguments`: default or paper.
        epochs: passes over the shots.
        batch_size: images per step.
        learning_rate: peak rate of AdamW.
        similarity_weight: weight of the similarity loss.
        precision: of CLIP's frozen weights, as `ANPromptTrainingArguments` has it.
    """

    recipe: str = "default"
    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 1e-3
    similarity_weight: float = 3.0
    precision: str | None = None


def to_pixels(processor: CLIPProcessor, images: Sequence[Image.Image]) -> Tensor:
    """CLIP's pixel values of RGB images: float32 [n, 3, H, W]."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def adapt(
    clip: CLIPModel, config: ANPromptConfig, pixels: Tensor, labels: Sequence[int], settings: Settings, seed: int
) -> tuple[PeftModel, list[dict[str, Any]]]:
    """Train an adapter on a few labelled images.

    Args:
        clip: the model to adapt, changed in place; `unload()` of the result gives it back.
        config: names the classes.
        pixels: float32 [n, 3, H, W].
        labels: n positions in the class names.
        settings: of the training.
        seed: of the tokens' initial values and of the batches.

    Returns:
        The adapted model in evaluation mode, and the Trainer's log: one record per epoch with every loss term.
    """
    set_seed(seed)
    model = get_peft_model(clip, config)
    data = Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": list(labels)}).with_format("torch")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ANPromptTrainingArguments(
            output_dir=scratch,
            recipe=settings.recipe,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            precision=settings.precision,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
        )
        trainer = ANPromptTrainer(model, arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval(), [record for record in trainer.state.log_history if "loss" in record]


@torch.no_grad()
def predict(model: Any, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """Most likely classes of images: int64 [n], on the CPU.

    Args:
        model: an adapted model in evaluation mode.
        pixels: float32 [n, 3, H, W].
        batch_size: images per forward pass.
    """
    batches = pixels.split(batch_size)
    return torch.cat([model(pixel_values=batch.to(model.device)).logits.argmax(dim=1).cpu() for batch in batches])
