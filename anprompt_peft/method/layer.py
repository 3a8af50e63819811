"""The tuner layers: prompts inside CLIP's encoder layers, and the head that owns what an adapter shares among them."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .config import ANPromptConfig
from .families import Family
from .features import Pass, at_least_float32
from .noise import Fitted
from .updates import MATRICES, Denoiser, TrainedUpdate, Updates, recorded

TOKEN_STD = 0.02
LOW_RANK_STD = 0.02
UNKNOWN_TOKEN = -1
"""The class token ids of an adapter whose weights are yet to be loaded."""


class LowRank(nn.Module):
    """`x -> x A^T B^T` with `A` random and `B` zero, an update that starts as nothing."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, in_features) * LOW_RANK_STD)
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        return F.linear(F.linear(inputs, self.down), self.up)  # ..., rank -> ..., out_features


class OneAdapterLayer(BaseTunerLayer):
    """A tuner layer with at most one active adapter."""

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter; more than one raises `ValueError`."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"ANPrompt can have one active adapter at a time, not {adapter_names}.")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        weight = next(base_layer.parameters())
        return weight.device, weight.dtype


class ANPromptHead(nn.Module, OneAdapterLayer):
    """Wraps the image head (`d_v -> d`) and holds per adapter what its layers share, and which is active.

    That is CLIP's `visual_projection`, or, where images are pooled by attention, all that pools them.

    Trained are tokens, maps and the prototype projection. Noise prompts, what is known of the classes, and a denoiser
    are buffers.
    """

    adapter_layer_names = (
        "anprompt_tokens",
        "anprompt_noise_map",
        "anprompt_text_map",
        "anprompt_vision_map",
        "anprompt_prototype",
    )
    other_param_names = (
        "anprompt_noise_prompts",
        "anprompt_clean_features",
        "anprompt_perturbed_features",
        "anprompt_class_ids",
        "anprompt_classifier",
        "anprompt_denoiser_down",
        "anprompt_denoiser_up",
    )

    base_layer: nn.Module
    anprompt_noise_prompts: BufferDict
    anprompt_clean_features: BufferDict
    anprompt_perturbed_features: BufferDict
    anprompt_class_ids: BufferDict
    anprompt_classifier: BufferDict
    anprompt_denoiser_down: BufferDict
    anprompt_denoiser_up: BufferDict

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, ANPromptConfig] = {}
        self.anprompt_tokens = nn.ParameterDict()
        self.anprompt_noise_map = nn.ModuleDict()
        self.anprompt_text_map = nn.ModuleDict()
        self.anprompt_vision_map = nn.ModuleDict()
        self.anprompt_prototype = nn.ModuleDict()
        for name in self.other_param_names:
            setattr(self, name, BufferDict(persistent=True))

    def update_layer(
        self, adapter_name: str, config: ANPromptConfig, text: PreTrainedConfig, inference_mode: bool = False
    ) -> None:
        """Create the parameters and (empty) buffers of an adapter whose configuration is resolved."""
        self.configs[adapter_name] = config
        latent, (dim, vision_width) = _latent_dim(config), self._widths
        if config.num_virtual_tokens:
            tokens = torch.randn(config.num_virtual_tokens, latent) * TOKEN_STD
            self.anprompt_tokens[adapter_name] = nn.Parameter(tokens)
        if config.num_noise_tokens and latent != dim and config.noise_map == "learned":
            self.anprompt_noise_map[adapter_name] = nn.Linear(dim, latent)
        if config.num_prompts:
            if config.projection_rank is not None:
                self.anprompt_text_map[adapter_name] = nn.Linear(latent, text.hidden_size)
                self.anprompt_vision_map[adapter_name] = nn.Linear(latent, vision_width)
            self.anprompt_prototype[adapter_name] = self._new_prototype(config)
        self._create_buffers(adapter_name, config, text)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def _widths(self) -> tuple[int, int]:
        """The joint width d and that of the vision encoder, d_v; heads that pool images keep the width."""
        *rows, width = next(self.base_layer.parameters()).shape
        return (rows[0] if isinstance(self.base_layer, nn.Linear) else width), width

    def _new_prototype(self, config: ANPromptConfig) -> nn.Module:
        """Return a trained projection: a copy of a linear image head, or an update of the head that starts at zero."""
        dim, vision_width = self._widths
        if config.prototype_rank is not None:
            return LowRank(vision_width, dim, config.prototype_rank)
        projection = nn.Linear(vision_width, dim, bias=False)
        if not isinstance(self.base_layer, nn.Linear):
            nn.init.zeros_(projection.weight)
        elif not projection.weight.is_meta and not self.base_layer.weight.is_meta:
            with torch.no_grad():
                projection.weight.copy_(self.base_layer.weight)
        return projection

    def _create_buffers(self, adapter_name: str, config: ANPromptConfig, text: PreTrainedConfig) -> None:
        dim, _ = self._widths
        noise_width = dim if adapter_name in self.anprompt_noise_map else _latent_dim(config)
        num_classes = len(config.class_names)
        empty = next(self.base_layer.parameters()).new_full
        for name, shape in (
            ("anprompt_noise_prompts", (config.num_noise_tokens, noise_width)),
            ("anprompt_clean_features", (num_classes, dim)),
            ("anprompt_perturbed_features", (num_classes, dim)),
        ):
            getattr(self, name)[adapter_name] = empty(shape, math.nan)
        if rank := config.denoiser_rank:
            layers = text.num_hidden_layers, len(MATRICES)
            self.anprompt_denoiser_down[adapter_name] = empty((*layers, rank, text.hidden_size), math.nan)
            self.anprompt_denoiser_up[adapter_name] = empty((*layers, text.hidden_size, rank), math.nan)
        ids_shape = (num_classes * len(config.templates), text.max_position_embeddings)
        self.anprompt_class_ids[adapter_name] = empty(ids_shape, UNKNOWN_TOKEN, dtype=torch.int64)
        if config.classifier_strength is not None:
            self.anprompt_classifier[adapter_name] = at_least_float32(empty((num_classes, dim), math.nan))

    def fill(self, adapter_name: str, fitted: Fitted) -> None:
        """Write what the noise pipeline found into the adapter's buffers, mapped to the latent dim if it is fixed."""
        noise_prompts, clean, perturbed, ids, denoiser = fitted
        config = self.configs[adapter_name]
        width = self.anprompt_noise_prompts[adapter_name].shape[-1]
        if width != noise_prompts.shape[-1]:
            noise_prompts = noise_prompts @ _orthogonal(noise_prompts.shape[-1], width, config.noise_seed).to(
                noise_prompts
            )
        context = self.anprompt_class_ids[adapter_name].shape[-1]
        ids = torch.cat([ids, ids[:, -1:].expand(-1, context - ids.shape[-1])], dim=-1)
        self.anprompt_noise_prompts[adapter_name].copy_(noise_prompts)
        self.anprompt_clean_features[adapter_name].copy_(clean)
        self.anprompt_perturbed_features[adapter_name].copy_(perturbed)
        self.anprompt_class_ids[adapter_name].copy_(ids)
        if denoiser is not None:
            self.anprompt_denoiser_down[adapter_name].copy_(denoiser.down)
            self.anprompt_denoiser_up[adapter_name].copy_(denoiser.up)

    def denoiser(self, adapter_name: str) -> Denoiser | None:
        """Return an adapter's denoiser, if it has one."""
        if adapter_name not in self.anprompt_denoiser_down:
            return None
        return Denoiser(self.anprompt_denoiser_down[adapter_name], self.anprompt_denoiser_up[adapter_name])

    def set_classifier(self, adapter_name: str, rows: Tensor, strength: float) -> None:
        """Give an adapter the anchored classifier of its C classes, `[C, d]`, in place of an earlier one."""
        clean = self.anprompt_clean_features[adapter_name]
        self.anprompt_classifier[adapter_name] = rows.to(at_least_float32(clean))
        self.configs[adapter_name].classifier_strength = strength

    def forget_classifier(self, adapter_name: str) -> None:
        """Leave an adapter without a classifier."""
        if adapter_name in self.anprompt_classifier:
            del self.anprompt_classifier[adapter_name]
        self.configs[adapter_name].classifier_strength = None

    @property
    def adapter(self) -> str:
        """Name of the active adapter, empty if there is none."""
        return self.active_adapters[0] if self.active_adapters else ""

    @property
    def active_config(self) -> ANPromptConfig | None:
        """Configuration of the adapter that takes part now, `None` if there is none or adapters are disabled."""
        return None if self.disable_adapters else self.configs.get(self.adapter)

    @property
    def active_pass(self) -> Pass:
        """Options of a pass with the active adapter, or of CLIP as it is."""
        config = self.active_config
        return Pass() if config is None else Pass(self.adapter, config)

    def prompts(self, adapter_name: str) -> Tensor:
        """Return the anti-noise prompts A `[n, r]`: tokens and noise prompts, joined by the chosen integration."""
        noise = self.anprompt_noise_prompts[adapter_name]
        if adapter_name in self.anprompt_noise_map:
            noise = self.anprompt_noise_map[adapter_name](noise)
        if adapter_name not in self.anprompt_tokens:
            return noise
        tokens = self.anprompt_tokens[adapter_name]
        noise = noise.to(tokens.dtype)
        if self.configs[adapter_name].noise_integration == "add":
            return tokens + noise
        return torch.cat([tokens, noise])

    def prototype(self, prompts: Tensor, adapter_name: str) -> Tensor:
        """Return the NRVPP `[B, d]`, not normalised, of output prompts `[B, n, d_v]` after the final layer norm.

        A head that pools images is asked about their mean alone.
        """
        projection: nn.Module = self.anprompt_prototype[adapter_name]
        mean, dtype = prompts.mean(dim=1), next(projection.parameters()).dtype
        trained, linear = projection(mean.to(dtype)), isinstance(self.base_layer, nn.Linear)
        if linear and not isinstance(projection, LowRank):
            return trained
        frozen = mean.to(next(self.base_layer.parameters()).dtype)
        return self.base_layer(frozen if linear else frozen[:, None]).to(dtype) + trained

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Apply the model's own image head, untouched."""
        return self.base_layer(hidden_states)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its configuration."""
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)


class ANPromptLayer(nn.Module, OneAdapterLayer):
    """Wraps the encoder layer of a 1-based number, from a tower's first one that an adapter changes to its last.

    Inserts the prompts behind BOS/CLS, or in front where there is none, at the first target layer, replaces (or mixes)
    them at later ones and strips them after the last layer of the encoder. In between, the attention mask grows with
    the sequence.
    """

    adapter_layer_names = ("anprompt_projection", "anprompt_update", "anprompt_lora")

    def __init__(
        self, base_layer: nn.Module, family: Family, tower: str, number: int, width: int, is_last: bool
    ) -> None:
        super().__init__()
        self.family = family
        self.base_layer = base_layer
        self.tower = tower
        self.number = number
        self.width = width
        self.is_last = is_last
        self.anprompt_projection = nn.ModuleDict()
        self.anprompt_update = nn.ModuleDict()
        self.anprompt_lora = nn.ModuleDict()
        self._head: tuple[ANPromptHead, ...] = ()

    def link(self, head: ANPromptHead) -> None:
        """Remember the head without making it a submodule."""
        self._head = (head,)

    def update_layer(self, adapter_name: str, config: ANPromptConfig, inference_mode: bool = False) -> None:
        """Create the adapter's prompt projection, if this is one of its target layers, and its updates."""
        if self.number in self.target_layers(config) and config.num_prompts:
            latent = _latent_dim(config)
            self.anprompt_projection[adapter_name] = (
                nn.Linear(latent, self.width)
                if config.projection_rank is None
                else LowRank(latent, self.width, config.projection_rank)
            )
        if self.tower == "text" and config.text_update_rank is not None:
            self.anprompt_update[adapter_name] = LowRank(self.width, self.width, config.text_update_rank)
        rank = config.text_lora_rank if self.tower == "text" else config.vision_lora_rank
        if rank is not None:
            self.anprompt_lora[adapter_name] = TrainedUpdate(self.width, rank)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def target_layers(self, config: ANPromptConfig) -> list[int]:
        """Return the 1-based target layers of this layer's tower."""
        layers = config.text_layers if self.tower == "text" else config.vision_layers
        assert isinstance(layers, list)
        return layers

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        prompt_context: Pass | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the layer with prompts in, by default those of the active adapter, if it is on.

        From the first target layer on, n prompts stand behind the start: `[B, L, width]` becomes `[B, L + n, width]`,
        and `[B, L, width]` again behind the last layer. The mask is that of the sequence without prompts.
        """
        head = self._head[0]
        context = prompt_context or head.active_pass
        adapter, config = context.adapter, context.config
        if updates := self.denoising(adapter) if config is None else self.attention_updates(adapter):
            kwargs["updates"] = updates
        if config is None:
            return self.base_layer(hidden_states, attention_mask, **kwargs)
        hidden_states = self.update(self._put_prompts(hidden_states, adapter, config), adapter)
        if self.base_layer.gradient_checkpointing and self.base_layer.training:
            hidden_states = recorded(hidden_states, updates)
        count = config.num_prompts if self.number >= self.target_layers(config)[0] else 0
        mask = grow_mask(attention_mask, count, self.family.start, self.family.causal) if count else attention_mask
        hidden_states = self.base_layer(hidden_states, mask, **kwargs)
        if not (self.is_last and count):
            return hidden_states
        at = self.family.start
        start, prompts, rest = hidden_states.split([at, count, hidden_states.shape[1] - at - count], dim=1)
        if self.tower == "vision":
            context.vision_prompts = prompts
        return torch.cat([start, rest], dim=1)

    def _put_prompts(self, hidden_states: Tensor, adapter_name: str, config: ANPromptConfig) -> Tensor:
        layers, start = self.target_layers(config), self.family.start
        if self.number not in layers or config.num_prompts == 0:
            return hidden_states
        prompts = self.project(adapter_name).to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
        if self.number == layers[0]:
            return torch.cat([hidden_states[:, :start], prompts, hidden_states[:, start:]], dim=1)
        count = config.num_prompts
        if self.tower == "vision" and config.prompt_mixing != 1:
            before = hidden_states[:, start : start + count]
            prompts = config.prompt_mixing * prompts + (1 - config.prompt_mixing) * before
        return torch.cat([hidden_states[:, :start], prompts, hidden_states[:, start + count :]], dim=1)

    def update(self, hidden_states: Tensor, adapter_name: str) -> Tensor:
        """Return what enters the layer, `[..., width]`, with an adapter's update `h + B A h`, if it has one here."""
        if adapter_name not in self.anprompt_update:
            return hidden_states
        update: Any = self.anprompt_update[adapter_name]
        return hidden_states + update(hidden_states.to(update.up.dtype)).to(hidden_states.dtype)

    @property
    def updates_attention(self) -> bool:
        """Whether any adapter updates the matrices of the layer's attention."""
        return len(self.anprompt_lora) > 0 or (self.tower == "text" and len(self._head[0].anprompt_denoiser_down) > 0)

    def attention_updates(self, adapter_name: str) -> Updates:
        """Return an adapter's updates of the layer's attention, frozen and trained, if it has any here."""
        frozen = self.denoising(adapter_name)
        return (*frozen, self.anprompt_lora[adapter_name]()) if adapter_name in self.anprompt_lora else frozen

    def denoising(self, adapter_name: str) -> Updates:
        """Return what an adapter's denoiser updates here, if it has one and this is a layer of the text encoder."""
        denoiser = self._head[0].denoiser(adapter_name) if self.tower == "text" else None
        return () if denoiser is None else (denoiser.of_layer(self.number),)

    def project(self, adapter_name: str) -> Tensor:
        """Return this layer's prompts of an adapter, `[n, width]`."""
        head = self._head[0]
        prompts = head.prompts(adapter_name)
        projected = self.anprompt_projection[adapter_name](prompts)
        shared = head.anprompt_text_map if self.tower == "text" else head.anprompt_vision_map
        if adapter_name in shared:
            projected = projected + shared[adapter_name](prompts)
        return projected


def grow_mask(mask: Tensor | None, count: int, start: int = 1, causal: bool = True) -> Tensor | None:
    """Make room in an attention mask for n prompts behind the start, in any form that text encoders are given.

    These are `None`; bool (sdpa, `True` attends) or additive float (eager) `[B, 1, L, L]`; `[B, L]` (flash attention).
    The prompts are seen by every later position, and by each other and BOS causally, or else by all; padding stays
    hidden.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        form = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise NotImplementedError(
            f"Prompts cannot be inserted into an attention mask of the form {form}. Load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'."
        )
    if mask.dim() == 2:
        return torch.cat([mask[:, :start], mask.new_ones(len(mask), count), mask[:, start:]], dim=1)
    length = mask.shape[-1]
    positions = torch.arange(length + count, device=mask.device)
    source = torch.where(positions < start + count, 0, positions - count)
    grown = mask[:, :, source][:, :, :, source]
    if not causal:
        grown[..., start : start + count] = mask.dtype == torch.bool  # True, or nothing added
        return grown
    block = torch.ones(start + count, start + count, dtype=torch.bool, device=mask.device).tril()
    if mask.dtype != torch.bool:
        block = torch.zeros_like(block, dtype=mask.dtype).masked_fill(~block, torch.finfo(mask.dtype).min)
    grown[:, :, : start + count, : start + count] = block
    return grown


def _latent_dim(config: ANPromptConfig) -> int:
    assert config.latent_dim is not None
    return config.latent_dim


def _orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """Return a seeded float64 matrix `[rows, columns]` with orthonormal rows or columns, whichever are fewer."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(gaussian).Q
    return basis if rows >= columns else basis.t()
