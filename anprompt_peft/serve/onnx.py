"""Exports the adapted image encoder with a fixed set of classes to one ONNX file, for serving without PyTorch."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import CLIPModel

from ..data.processor import check_processor
from ..extras import missing
from ..fast import Savings
from ..fast.run import run
from ..files import atomic_file, hub_id
from ..method.config import LogitsKind
from ..method.families import family_of
from ..provenance import provenance
from ..tuner import AdaptedModel, adapted_clip

ONNX_PACKAGES = ("onnx", "onnxscript")
OPSETS = range(18, 25)
"""Operator set versions that PyTorch writes and ONNX Runtime was tested with."""
MAX_BYTES = 7 * 2**28
"""Upper limit of the weights in bytes; protobuf allows 2 GiB per file."""


class ImageSide(nn.Module):
    """The image encoder, the prototype and the text features of fixed classes.

    Args:
        clip (`AdaptedModel`): the adapted model, in evaluation mode. Its text encoder is removed.
        logits (`LogitsKind`, *optional*): defaults to those the model returns.
    """

    text_features: Tensor
    clean_text: Tensor | None
    classifier_at: Tensor | None
    classifier_rows: Tensor | None

    def __init__(self, clip: AdaptedModel, logits: LogitsKind | None) -> None:
        super().__init__()
        clip.set_savings(Savings.none())
        self.plan = clip.plan(kind=_checked(clip, logits))
        self.register_buffer("text_features", self.plan.text_features)
        self.register_buffer("clean_text", self.plan.clean_text)
        at, rows = self.plan.classifier or (None, None)
        self.register_buffer("classifier_at", at)
        self.register_buffer("classifier_rows", rows)
        for name in {family_of(clip).text_head.split(".")[0], "text_model"}:
            delattr(clip, name)
        self.clip = clip

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits `[B, C]` and the normalised image features `[B, d]` of images `[B, 3, H, W]`."""
        plan = replace(self.plan, text_features=self.text_features, clean_text=self.clean_text)
        if self.classifier_at is not None and self.classifier_rows is not None:
            plan = replace(plan, classifier=(self.classifier_at, self.classifier_rows))
        logits, scores, _ = run(self.clip, plan, pixel_values)
        return logits, scores.image_embeds


@torch.no_grad()
def export_onnx(
    model: PeftModel | CLIPModel,
    processor: Any,
    path: str | os.PathLike[str],
    *,
    logits: LogitsKind | None = None,
    opset: int | None = None,
) -> None:
    """Export the image encoder of an adapted model, with its current classes, to an ONNX file.

    The graph maps `pixel_values`, float32 `[batch, 3, H, W]` with any batch size, to `logits`, float32 `[batch, C]`,
    and `image_embeds`, float32 `[batch, d]`, normalised. It holds no text encoder: the classes are fixed to the
    current `model.class_names`; the logits have the adapter's classifier in, if it has one. A copy is exported, in
    float32 on the CPU, whatever the model's dtype and device are; the model itself is not changed.

    The file's metadata tell a server in JSON all that it needs: `class_names` in the order of the logits, `templates`,
    `logits`, `classifier_weight` (0 without a classifier), `preprocessing` (`size`, `resample` as Pillow numbers it,
    `crop_size`, `rescale_factor`, `image_mean`, `image_std`, in this order), `base_model` (a Hub id or null) and
    `versions`.

    Args:
        model (`PeftModel` or `AdaptedModel`): the adapted model, with one active adapter.
        processor (`CLIPProcessor` or CLIP image processor): the one that prepared the images in training.
        path (path): the file, written atomically. An existing file is replaced.
        logits (`"fused"`, `"class"`, `"prototype"` or `"ensemble"`, *optional*): defaults to those the model itself
            returns in evaluation mode.
        opset (`int`, *optional*): version of ONNX's operator set, 18 to 24; defaults to what PyTorch recommends.

    Raises:
        ImportError: if a package that PyTorch needs for this is missing.
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if the model has no such logits or is too large for one file, the processor does not make its
            pixels or does anything but resize, crop, rescale and normalise, or `opset` is out of range.
        IsADirectoryError: if `path` is a folder.
    """
    if absent := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ImportError(missing(" and ".join(absent), "onnx"))
    if opset is not None and opset not in OPSETS:
        raise ValueError(f"opset={opset!r} must lie between {OPSETS.start} and {OPSETS.stop - 1}, or be None.")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of the file to write.")
    clip = adapted_clip(model)
    vision = clip.config.vision_config
    shape = (vision.num_channels, vision.image_size, vision.image_size)
    record = {
        "class_names": clip.class_names,
        "templates": clip.classes.templates,
        "preprocessing": preprocessing(processor, shape),
        "base_model": hub_id(clip.name_or_path),
        "versions": provenance(*ONNX_PACKAGES)["versions"],
    }
    pixels = torch.zeros(2, *shape)
    side = ImageSide(copy.deepcopy(clip).float().cpu().eval(), logits)
    record["logits"] = side.plan.kind
    record["classifier_weight"] = 0.0 if side.classifier_at is None else clip.active_config.classifier_weight
    program = _to_onnx(side, pixels, opset)
    program.model.metadata_props.update({name: json.dumps(value) for name, value in record.items()})
    with atomic_file(path) as fresh:
        program.save(fresh)


def preprocessing(processor: Any, pixel_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the numbers with which a processor turns an RGB image into pixel values `[3, H, W]`.

    Args:
        processor (`CLIPProcessor` or CLIP image processor): the processor.
        pixel_shape (`tuple[int, int, int]`): the pixel values that the model takes.

    Raises:
        ValueError: if the pixel values have another shape, or the processor does anything else with the image or has
            values that cannot be computed with.
    """
    processor = getattr(processor, "image_processor", processor)
    settings = processor.to_dict()
    size = {side: length for side, length in settings["size"].items() if length}
    steps = {step: settings[step] for step in ("do_resize", "do_rescale", "do_normalize")}
    if not all(steps.values()) or set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(
            "The image processor must resize, to a 'shortest_edge' or to 'height' and 'width', rescale and normalise; "
            f"this one has {steps} and size={size}."
        )
    check_processor(processor)
    _, height, width = pixel_shape
    wide = np.zeros((height, 2 * width, 3), dtype=np.uint8)
    made = processor(images=[wide], return_tensors="np")["pixel_values"].shape[1:]
    if made != pixel_shape:
        raise ValueError(f"The image processor makes pixels {list(made)}, but the model takes {list(pixel_shape)}.")
    return {
        "size": size,
        "resample": int(settings["resample"]),
        "crop_size": {"height": height, "width": width},
        "rescale_factor": settings["rescale_factor"],
        "image_mean": list(settings["image_mean"]),
        "image_std": list(settings["image_std"]),
    }


def _checked(clip: AdaptedModel, wanted: LogitsKind | None) -> LogitsKind | None:
    config = clip.active_config
    there: tuple[str, ...] = ("fused", "class")
    if not clip.head.disable_adapters and config.trains:
        there = tuple(kind for kind in get_args(LogitsKind) if config.num_prompts or kind != "prototype")
    if wanted is not None and wanted not in there:
        raise ValueError(f"logits={wanted!r} is not one of those the model has: {list(there)}.")
    return wanted


def _to_onnx(side: ImageSide, pixels: Tensor, opset: int | None) -> torch.onnx.ONNXProgram:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    size = sum(tensor.numel() * tensor.element_size() for tensor in side.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"The image side has {size:,} bytes of weights; one ONNX file holds at most {MAX_BYTES:,}.")
    exported = torch.export.export(side, (pixels,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
    program = torch.onnx.export(
        exported,
        input_names=["pixel_values"],
        output_names=["logits", "image_embeds"],
        dynamic_shapes={"pixel_values": {0: "batch"}},
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return program
