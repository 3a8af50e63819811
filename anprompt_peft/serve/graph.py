"""Exported graphs: how ONNX Runtime computes them, and where they are cached."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path
from peft import PeftModel
from torch import Tensor
from transformers import CLIPModel

from ..extras import extra
from ..provenance import provenance
from ..tuner import adapted_clip
from .onnx import ONNX_PACKAGES


class Graph:
    """A file that [`export_onnx`] wrote, on the CPU: [`predict`] takes it in place of the model.

    Args:
        path (path): the file.

    Attributes:
        class_names (`tuple[str, ...]`): the C classes that it tells apart.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with extra("onnx"):
            import onnxruntime
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = json.loads(self._session.get_modelmeta().custom_metadata_map["class_names"])
        self.class_names: tuple[str, ...] = tuple(names)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits, float32 `[B, C]`, of pixel values, float32 `[B, 3, H, W]`."""
        (logits,) = self._session.run(["logits"], {"pixel_values": pixels.numpy()})
        return torch.from_numpy(logits)


def graph_path(model: PeftModel | CLIPModel, processor: Any) -> Path:
    """Return where [`export_onnx`] may cache the graph of an adapted model with its current classes.

    It is in huggingface_hub's folder of assets (`HF_ASSETS_CACHE`). A file is named by a digest of all that it is made
    of, the weights among it, so none can be out of date.
    """
    clip = adapted_clip(model)
    facts = [
        clip.active_config.to_dict(), clip.class_names, clip.classes.templates, clip.config.to_dict(),
        getattr(processor, "image_processor", processor).to_dict(), provenance(*ONNX_PACKAGES)["versions"],
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode())
    for name, tensor in clip.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return cached_assets_path("anprompt-peft", "onnx", digest.hexdigest()[:32]) / "model.onnx"


def _plain(value: Any) -> Any:
    """Return what JSON has no form for as text, and sets, whose order is another one in each process, sorted."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
