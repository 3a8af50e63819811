"""The methods whose results can be saved: their tensors, and the fitted method that these make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ..evaluation.backbone import Backbone
from ..evaluation.peers.lora import TunedCLIP
from ..evaluation.peers.probe import Probe
from ..evaluation.peers.prolip import Projection, check_projection
from ..evaluation.peers.tip_adapter import Cache
from ..evaluation.peers.zero_shot import FrozenCLIP
from ..evaluation.task import Fitted
from ..method.families import joint_width
from .config import CLIPClassifierConfig
from .specs import FREE, INTEGERS, TensorSpec


class Kind(NamedTuple):
    """A method that can be saved.

    Attributes:
        fitted (`type`): of what it is after it has learned.
        tensors (`Callable`): from the configuration and the CLIP's, what its file holds.
        build (`Callable`): from the backbone, the configuration and the tensors, the fitted method.
        settings (`tuple[str, ...]`): fields of the fitted method that the configuration holds.
    """

    fitted: type
    tensors: Callable[[CLIPClassifierConfig, PreTrainedConfig], dict[str, TensorSpec]]
    build: Callable[[Backbone, CLIPClassifierConfig, Mapping[str, Tensor]], Fitted]
    settings: tuple[str, ...] = ()


def _probe_tensors(config: CLIPClassifierConfig, clip: PreTrainedConfig) -> dict[str, TensorSpec]:
    classes = len(config.class_names)
    return {"weight": TensorSpec((classes, joint_width(clip))), "bias": TensorSpec((classes,))}


def _cache_tensors(config: CLIPClassifierConfig, clip: PreTrainedConfig) -> dict[str, TensorSpec]:
    return {"keys": TensorSpec((FREE, joint_width(clip))), "labels": TensorSpec((FREE,), INTEGERS)}


def _projection_tensors(config: CLIPClassifierConfig, clip: PreTrainedConfig) -> dict[str, TensorSpec]:
    check_projection(clip)
    return {"weight": TensorSpec((joint_width(clip), clip.vision_config.hidden_size))}


def _build_probe(backbone: Backbone, config: CLIPClassifierConfig, tensors: Mapping[str, Tensor]) -> Fitted:
    weight, bias = (tensors[name].cpu().double() for name in ("weight", "bias"))
    return Probe(backbone, tuple(config.class_names), weight, bias)


def _build_cache(backbone: Backbone, config: CLIPClassifierConfig, tensors: Mapping[str, Tensor]) -> Fitted:
    labels = F.one_hot(tensors["labels"], len(config.class_names)).to(tensors["keys"])
    alpha, beta = (config.settings[name] for name in ("alpha", "beta"))
    return Cache(backbone, tuple(config.class_names), tensors["keys"], labels, alpha, beta, ensemble=False)


KINDS: Mapping[str, Kind] = {
    "linear-probe": Kind(Probe, _probe_tensors, _build_probe),
    "tip-adapter-f": Kind(Cache, _cache_tensors, _build_cache, ("alpha", "beta")),
    "prolip": Kind(
        Projection,
        _projection_tensors,
        lambda backbone, config, tensors: Projection(backbone, tensors["weight"], ensemble=False),
    ),
    "lora": Kind(TunedCLIP, lambda config, clip: {}, lambda backbone, config, tensors: FrozenCLIP(backbone)),
    "zero-shot": Kind(FrozenCLIP, lambda config, clip: {}, lambda backbone, config, tensors: FrozenCLIP(backbone)),
}
"""By the names in a configuration; of LoRA, PEFT's own file has the tensors. The first that fits is what is saved."""


def kind_of(fitted: Fitted) -> str:
    """Return the name of a fitted method's kind; raise `TypeError` if it cannot be saved."""
    for name, kind in KINDS.items():
        if isinstance(fitted, kind.fitted):
            return name
    raise TypeError(f"{type(fitted).__name__} cannot be saved as a classifier, only {', '.join(KINDS)}.")
