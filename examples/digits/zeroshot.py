"""Zero-shot classification with a CLIP model: the class whose caption is closest to the image."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.method.features import evaluating


@torch.no_grad()
def class_logits(
    model: CLIPModel,
    processor: CLIPProcessor,
    images: Sequence[Image.Image],
    class_names: Sequence[str],
    template: str,
    batch_size: int = 256,
) -> Tensor:
    """Scaled image-caption similarities in evaluation mode, on the model's device: float [n, classes], on the CPU.

    Args:
        images: n RGB images.
        class_names: one name per class, put in place of `{}` in `template`.
        batch_size: images per forward pass.
    """
    if not images:
        raise ValueError("no images to classify")
    if "{}" not in template:
        raise ValueError(f"template {template!r} has no {{}} for the class name")
    captions = [template.format(name) for name in class_names]
    text = processor(text=captions, padding=True, truncation=True, return_tensors="pt").to(model.device)
    parts = []
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            batch = processor(images=list(images[start : start + batch_size]), return_tensors="pt").to(model.device)
            parts.append(model(**text, **batch).logits_per_image.cpu())
    return torch.cat(parts)


def zero_shot_accuracy(
    model: CLIPModel,
    processor: CLIPProcessor,
    images: Sequence[Image.Image],
    labels: np.ndarray,
    class_names: Sequence[str],
    template: str,
) -> float:
    """Share (0..1) of images whose most likely class is the right one.

    Args:
        images: n RGB images.
        labels: int array [n], positions in `class_names`.
        class_names: one name per class.
        template: caption with `{}` for the class name.
    """
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    predicted = class_logits(model, processor, images, class_names, template).argmax(dim=1).numpy()
    return float((predicted == labels).mean())
