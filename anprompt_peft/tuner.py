"""`ANPromptModel`, the PEFT tuner: puts adapters into a `CLIPModel` and answers PEFT's verbs."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, delete_adapter
from torch import Tensor, nn
from torch._dynamo import eval_frame
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pipelines import base as pipelines

from .clip import NOT_PREDICTIONS, PromptedModel
from .denoising.loading import read_denoiser
from .fast.blocks import decomposes
from .fast.encoders import block, weights_of
from .fast.state import State
from .files import hub_id
from .method.config import ANPromptConfig
from .method.families import CLIP, FAMILIES, MODELS, OTHERWISE, family_of, image_head, made_of
from .method.features import evaluating
from .method.layer import UNKNOWN_TOKEN, ANPromptHead, ANPromptLayer
from .method.noise import Fitted, fit
from .method.registration import PREFIX
from .method.updates import Denoiser
from .patches import wrap
from .publish.mixin import PublishMixin

ATTENTION = ("sdpa", "eager", "flash_attention_2")
OWN_LAYERS = (ANPromptLayer, ANPromptHead)
_FORWARDS = {"forward", "_old_forward"}

logger = logging.getLogger(__name__)


class AdaptedModel(PublishMixin, PromptedModel):
    """A model with ANPrompt adapters. Injection turns a `CLIPModel` into one in place; `unload()` turns it back.

    Its class is made of this one and the model's own: `ANPromptCLIPModel` of `CLIPModel`, and so on. It is never built
    directly: it adds no weights of its own, and everything of the model's own class works as before, with the prompts
    of the active adapter in.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights of another adapter before any is copied, by whichever way they come."""
        _check_incoming(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


ADAPTED = {each: made_of(AdaptedModel, each.model, f"ANPrompt{each.model.__name__}") for each in FAMILIES.values()}
ANPromptCLIPModel = ADAPTED[CLIP]


class OwnConfigs(dict[str, ANPromptConfig]):
    """The configurations of a model's adapters. PEFT adds those of any method here before it changes a module."""

    def __setitem__(self, adapter: str, config: Any) -> None:
        if not isinstance(config, ANPromptConfig):
            raise ValueError(
                f"This CLIP has ANPrompt adapters, and {getattr(config, 'peft_type', config)} beside them would be "
                "applied in part. Merge it into the CLIP first, and adapt the result: "
                "get_peft_model(clip, config).merge_and_unload()."
            )
        super().__setitem__(adapter, config)

    def update(self, *others: Any, **more: Any) -> None:
        """Add configurations, each as `self[adapter] = config` does."""
        for adapter, config in dict(*others, **more).items():
            self[adapter] = config


class ANPromptModel(BaseTuner):
    """Adapts a CLIP with anti-noise prompts (https://arxiv.org/abs/2508.04677).

    Args:
        model (`CLIPModel`): the model to adapt, changed in place.
        peft_config (`ANPromptConfig`): the configuration; it is completed from the backbone.
        adapter_name (`str`): defaults to `"default"`.
        low_cpu_mem_usage (`bool`): create the adapter's parameters on the meta device, to be loaded.

    Raises:
        TypeError: if the model is not a `CLIPModel`.
        ValueError: if the configuration does not fit the backbone.
        NotImplementedError: for an attention implementation whose masks prompts cannot be inserted into.

    Example:

        ```py
        >>> from transformers import CLIPModel
        >>> from peft import get_peft_model
        >>> from anprompt_peft import ANPromptConfig

        >>> clip = CLIPModel.from_pretrained("openai/clip-vit-base-patch16")
        >>> model = get_peft_model(clip, ANPromptConfig(class_names=["cat", "dog"]))
        ```
    """

    prefix = PREFIX
    tuner_layer_cls = BaseTunerLayer

    def inject_adapter(
        self,
        model: PreTrainedModel,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Check the backbone, compute the noise prompts, and put the adapter's layers in.

        Nothing of the model has changed if a check or the noise pipeline raises. The adapter has a configuration of
        its own, and takes the place of an earlier one of its name. Modules are chosen from the configuration, never
        from the keys of `state_dict`: layers that only pass prompts on have no weights.
        """
        check_backbone(model)
        if not isinstance(self.peft_config, OwnConfigs):  # else it is the model's, from an earlier adapter
            self.peft_config = OwnConfigs(self.peft_config)
        earlier = getattr(image_head(model), "configs", {}).get(adapter_name)
        try:
            config, fitted = self._prepare(self.peft_config[adapter_name], model)
        except BaseException:
            if earlier is not None:
                self.peft_config[adapter_name] = earlier
            raise
        self.peft_config[adapter_name] = config
        if earlier is not None:
            delete_adapter(model, adapter_name, PREFIX)
            model.anprompt_state.ask_for(None)
            model.anprompt_state.forget(adapter_name)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        head = image_head(model)
        if fitted is not None:
            head.fill(adapter_name, fitted)
        for module in model.modules():
            if isinstance(module, ANPromptLayer):
                module.link(head)
        _update_attention(model)
        _change_class(model, ADAPTED[family_of(model)])
        if not hasattr(model, "anprompt_state"):
            labels = model.config.id2label, model.config.label2id
            model.config.keys_to_ignore_at_inference = [*NOT_PREDICTIONS]  # read by Trainer
            model.anprompt_state = State(decomposes=_probe(model), base_labels=labels)
        model.name_labels()

    def _prepare(self, given: ANPromptConfig, model: PreTrainedModel) -> tuple[ANPromptConfig, Fitted | None]:
        """Return the adapter's own configuration, completed, and what the noise pipeline finds for it."""
        if given.init_noise_prompts and given.classifier_strength is not None:
            raise ValueError(
                f"classifier_strength={given.classifier_strength!r} belongs to a classifier that is fitted, and a new "
                "adapter has none. Leave it None; fit_classifier(batches, strength=...) sets it."
            )
        config = given.resolved(model.config)
        denoiser = _read_denoiser(config, model) if config.init_noise_prompts else None
        config.target_modules = _target_modules(config, model.config)
        _check_attention(model, config)
        if config.init_noise_prompts:
            config.base_model_name_or_path = _from_anywhere(config.base_model_name_or_path)
        if config.tokenizer is None:
            name = _tokenizer_name(config, getattr(model, "name_or_path", None) or None)
            config.tokenizer_name_or_path = _from_anywhere(name)
        fitted = fit(model, config, denoiser) if config.init_noise_prompts else None
        config.is_injected = True
        return config, fitted

    def _create_and_replace(
        self,
        peft_config: ANPromptConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        inference_mode = peft_config.inference_mode
        if current_key == family_of(self.model).image_head:
            head = target if isinstance(target, ANPromptHead) else ANPromptHead(target)
            head.update_layer(adapter_name, peft_config, self.model.config.text_config, inference_mode)
            new_module: nn.Module = head
        else:
            layer = target if isinstance(target, ANPromptLayer) else self._new_layer(target, current_key)
            layer.update_layer(adapter_name, peft_config, inference_mode)
            new_module = layer
        if new_module is not target:
            if adapter_name not in self.active_adapters:
                new_module.requires_grad_(False)
            self._replace_module(parent, target_name, new_module, target)

    def _new_layer(self, target: nn.Module, key: str) -> ANPromptLayer:
        tower, *_, index = key.split(".")
        config = self.model.config.text_config if tower == "text_model" else self.model.config.vision_config
        number = int(index) + 1
        is_last = number == config.num_hidden_layers
        family, tower = family_of(self.model), tower.removesuffix("_model")
        layer = ANPromptLayer(target, family, tower, number, config.hidden_size, is_last)
        layer.set_adapter(self.active_adapters)
        return layer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Only put the module in its place; the wrapped blocks have no weight or bias to copy."""
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> PreTrainedModel:
        model: Any = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        model.config.id2label, model.config.label2id = model.anprompt_state.base_labels
        del model.config.keys_to_ignore_at_inference
        _restore_attention(model)
        _change_class(model, family_of(model).model)
        del model.anprompt_state
        return model

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "ANPrompt adds tokens to the sequence and changes no weight, so it cannot be merged. Keep the adapter "
            "loaded, or call unload() to get the base model back."
        )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapter and name its classes in the model's configuration."""
        super().set_adapter(adapter_name, inference_mode)
        if isinstance(self.model, AdaptedModel):  # not yet while the first adapter is injected
            self.model.name_labels()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the active one, the first remaining one becomes active in all layers."""
        super().delete_adapter(adapter_name)
        self.model.anprompt_state.forget(adapter_name)
        self.set_adapter(self.model.head.active_adapters)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "ANPrompt cannot mix adapters within a batch (adapter_names). Use set_adapter(name) and one batch per "
                "adapter."
            )
        yield


def adapted_clip(model: Any) -> AdaptedModel:
    """Return the model with an ANPrompt adapter that `model` is or wraps; raise `TypeError` if there is none."""
    clip = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(clip, AdaptedModel):
        raise TypeError(
            f"This takes a CLIPModel with an ANPrompt adapter, not {type(clip).__name__}. Adapt it with "
            "get_peft_model(clip, ANPromptConfig(...)), or load an adapter with PeftModel.from_pretrained(clip, name)."
        )
    return clip


def patch_models() -> None:
    """Let compiled models plan their calls, CLIP name its token embedding, and pipelines know adapted models.

    `AutoPeftModel` asks for the embedding wherever a tokenizer lies beside an adapter, and transformers' `CLIPModel`
    raises `NotImplementedError`; a version that implements it keeps its own. Pipelines log an error about any class
    that is not on their lists.
    """
    wrap(PeftModel, "__init__", _init_with_hook)
    for family in FAMILIES.values():
        if family.model.get_input_embeddings is PreTrainedModel.get_input_embeddings:
            family.model.get_input_embeddings = lambda clip: clip.text_model.embeddings.token_embedding
    tasks: dict[str, list[str]] = getattr(pipelines, "SUPPORTED_PEFT_TASKS", {})
    for task in ("image-classification", "zero-shot-image-classification"):
        known = tasks.setdefault(task, [])
        known.extend(each.__name__ for each in (*ADAPTED.values(), PeftModel) if each.__name__ not in known)


def _init_with_hook(stock: Callable[..., None], model: PeftModel, *args: Any, **kwargs: Any) -> None:
    stock(model, *args, **kwargs)
    if isinstance(model.base_model, ANPromptModel):
        model.register_forward_pre_hook(_plan_first, with_kwargs=True)


def _plan_first(model: PeftModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the plan of a compiled call whose graph has not begun, as hooks of the compiled module run before it."""
    if not torch.compiler.is_compiling() and getattr(eval_frame, "_is_in_optimized_module", bool)():
        return args, adapted_clip(model).with_plan(args, kwargs)
    return args, kwargs


eval_frame.skip_code(_plan_first.__code__)  # else it would be compiled by itself


def check_backbone(model: Any) -> None:
    """Raise unless `model` is a dual encoder that prompts can be put into, as it is loaded and wrapped."""
    if type(model) not in (*MODELS, *ADAPTED.values()):
        raise TypeError(_not_a_clip(model))
    for tower in (model.text_model, model.vision_model):
        name = tower.config._attn_implementation
        if name not in ATTENTION:
            raise NotImplementedError(
                f"attn_implementation={name!r} is not supported: prompts are inserted into the attention masks of "
                f"{list(ATTENTION)} only. Load CLIP with one of these."
            )
    _check_forward(model)
    family = family_of(model)
    own, heads = family.model.__name__, [family.image_head, family.text_head]
    modules = dict(model.named_modules())
    if absent := [name for name in heads if name not in modules]:
        raise TypeError(f"This {own} has no {' and '.join(absent)}: its configuration leaves it out. Use one with it.")
    parts = {name: weights_of(modules[name]) for name in heads}
    quantised = [name for name, weights in parts.items() if not all(map(torch.is_floating_point, weights))]
    if quantised:
        raise ValueError(
            f"The quantised {' and '.join(quantised)} cannot be the start of an adapter's weights. Leave them as they "
            f"are: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules={heads}), for 4 bit alike."
        )
    eos, read_at = model.config.text_config.eos_token_id, getattr(model.text_model, "eos_token_id", None)
    if read_at not in (None, eos):
        raise ValueError(
            f"eos_token_id={eos} in CLIP's configuration came too late: the text encoder was built with {read_at}. "
            f"Change the configuration first, and load the model with it: {own}.from_pretrained(name, config=config)."
        )
    if any(isinstance(module, BaseTunerLayer) and not isinstance(module, OWN_LAYERS) for module in model.modules()):
        raise TypeError("This CLIP already carries adapters of another method. Merge or unload them first.")
    for layer in (*model.text_model.encoder.layers, *model.vision_model.encoder.layers):
        base = layer.get_base_layer() if isinstance(layer, ANPromptLayer) else layer
        if not isinstance(base, family.layer):
            raise TypeError(f"ANPrompt wraps {family.layer.__name__}, found {type(base).__name__} in its place.")


def _check_forward(model: PreTrainedModel) -> None:
    """Raise `ValueError` if somebody holds on to the forward that adapting replaces, or keeps weights elsewhere."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    hooks += [inner for hook in hooks for inner in getattr(hook, "hooks", ())]
    if len(places) > 1 or any(getattr(hook, "offload", False) for hook in hooks):
        raise ValueError(
            f"This CLIP is spread over devices {sorted(places) or ''} by device_map or offloading, and prompts go to "
            "both encoders at once. Load it on one device: from_pretrained(name, device_map={'': 0}), or "
            "without device_map and then .to(device)."
        )
    forward = _own_forward(model)
    if getattr(forward, "__func__", None) is not type(model).forward:
        raise ValueError(
            f"The forward of this CLIP was replaced by {forward!r}, as accelerator.prepare and torch.compile do, and "
            "would be called without prompts. Adapt the CLIP first, and then prepare, compile or wrap it."
        )


def _own_forward(module: nn.Module) -> Any:
    """Return a module's forward, behind a hook of Accelerate."""
    return getattr(module, "_old_forward" if hasattr(module, "_hf_hook") else "forward")


def _change_class(model: nn.Module, kind: type[nn.Module]) -> None:
    """Let a module take on a class, with the forwards that hooks of Accelerate set on the instance."""
    for name in _FORWARDS & vars(model).keys():
        if getattr(vars(model)[name], "__func__", None) is type(model).forward:
            setattr(model, name, MethodType(kind.forward, model))
    model.__class__ = kind


def _check_attention(model: PreTrainedModel, config: ANPromptConfig) -> None:
    """Raise `TypeError` if an adapter updates the matrices of an attention that somebody has replaced."""
    family = family_of(model)
    for tower in ("text", "vision"):
        layers = getattr(model, f"{tower}_model").encoder.layers if config.updates_attention(tower) else ()
        for attention in (block(layer).self_attn for layer in layers):
            known = type(attention) in (family.attention, family.updated_attention)
            if not known or getattr(_own_forward(attention), "__func__", None) is not type(attention).forward:
                field = "denoiser" if tower == "text" and config.text_lora_rank is None else f"{tower}_lora_rank"
                raise TypeError(
                    f"{field} updates the matrices of {family.attention.__name__}, and found "
                    f"{type(attention).__name__} with the forward {_own_forward(attention)!r} in its place. Adapt the "
                    f"CLIP as it is loaded, or set {field} to None."
                )


def _update_attention(model: PreTrainedModel) -> None:
    """Let the attention of layers whose matrices adapters update know of updates, in place."""
    for layer in model.modules():
        if isinstance(layer, ANPromptLayer) and layer.updates_attention:
            attention: Any = layer.base_layer.self_attn
            _change_class(attention, family_of(model).updated_attention)


def _restore_attention(model: PreTrainedModel) -> None:
    family = family_of(model)
    for module in model.modules():
        if isinstance(module, family.updated_attention):
            _change_class(module, family.attention)


def check_shape(name: str, shape: Sequence[int], needed: Sequence[int]) -> None:
    """Raise `ValueError` if a tensor of an adapter has a shape that does not fit the CLIP it is loaded into."""
    if tuple(shape) != tuple(needed):
        raise ValueError(
            f"The adapter's weights do not fit: {name} has the shape {list(shape)}, and {list(needed)} is needed "
            "here. Load them with the adapter_config.json that they were saved with, and into the CLIP that "
            "base_model_name_or_path in it names."
        )


def _not_a_clip(model: Any) -> str:
    """Return what to do about a model of which no family is."""
    name, served = type(model).__name__, {each.model: each.model.__name__ for each in FAMILIES.values()}
    for each, own in served.items():
        if isinstance(model, each):
            return (
                f"{name} is a subclass of {own}, and adapting replaces the class. Load the base model with "
                f"{own}.from_pretrained(...)."
            )
    if isinstance(getattr(model, "base_model", None), ANPromptModel):
        return f"This {name} has an ANPrompt adapter already. Add another one with model.add_adapter(name, config)."
    for path, module in model.named_modules():
        if type(module) in served:
            own = served[type(module)]
            return f"{name} holds a {own} at {path!r}. Adapt that one: get_peft_model(model.{path}, config)."
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if family := FAMILIES.get(re.sub("_(text|vision)_model$", "", kind)):
        own = family.model.__name__
        return (
            f"ANPrompt adapts both towers of transformers' {own} together, not {name} alone. Load the base model "
            f"with {own}.from_pretrained(...)."
        )
    return (
        f"ANPrompt adapts transformers' {' and '.join(served.values())} (both towers), not {name}, whose encoders are "
        f"built differently. Choose a checkpoint of the model type {' or '.join(map(repr, FAMILIES))}, for example "
        f"openai/clip-vit-base-patch16, and load it with CLIPModel.from_pretrained(...).{OTHERWISE.get(kind, '')}"
    )


def _probe(clip: PreTrainedModel) -> bool:
    """Whether the layers of both encoders are built as savings need them; warns if CLIP's own forward must be used."""
    family = family_of(clip)
    if not family.saves:
        return False
    ways = (False, True) if family.causal else (False,)
    last = [tower.encoder.layers[-1].get_base_layer() for tower in (clip.text_model, clip.vision_model)]
    with evaluating(clip):  # dropout would tell any two passes apart
        known = all(decomposes(layer, ways) for layer in last)
    if not known:
        warnings.warn(
            f"transformers {transformers.__version__} builds CLIP's encoder layers, or quantisation stores their "
            "weights, in a way unknown here: training is slower and takes more memory, with the same results.",
            stacklevel=2,
        )
    return known


def _check_incoming(clip: PreTrainedModel, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Raise `ValueError` if adapter weights about to be loaded were made for other classes or another CLIP."""
    head, path = image_head(clip), family_of(clip).image_head
    for adapter, own in head.anprompt_class_ids.items():
        given = state_dict.get(f"{prefix}{path}.anprompt_class_ids.{adapter}")
        if given is None or own.is_meta or (own == UNKNOWN_TOKEN).all():  # those of an adapter that is being loaded
            continue
        if given.shape != own.shape or not torch.equal(given.to(own), own):
            names = head.configs[adapter].class_names
            raise ValueError(
                f"These weights are of an adapter for other class texts than those of {adapter!r}, whose classes are "
                f"{names}, in this order. Load them under another adapter_name with load_adapter, which reads their "
                "names."
            )
    for name, tensor in clip.state_dict().items():
        given = state_dict.get(prefix + name)
        if PREFIX in name and given is not None:
            check_shape(name, given.shape, tensor.shape)


def _read_denoiser(config: ANPromptConfig, model: PreTrainedModel) -> Denoiser | None:
    """Return the denoiser that a new adapter starts from, if it names one; its rank stays in `config`."""
    if config.denoiser is None:
        if config.denoiser_rank is not None:
            raise ValueError(
                f"denoiser_rank={config.denoiser_rank} belongs to a denoiser, which a new adapter reads: set denoiser "
                "to its folder or Hub id, or denoiser_rank to None."
            )
        return None
    down, up = read_denoiser(model.config, config.denoiser)
    config.denoiser = _from_anywhere(config.denoiser)
    config.denoiser_rank = down.shape[-2]
    return Denoiser(down.to(model.device, model.dtype), up.to(model.device, model.dtype))


def _tokenizer_name(config: ANPromptConfig, base: str | None) -> str | None:
    """Return where the tokenizer comes from: the user's choice, but the base model's for an adapter that is loaded."""
    named = config.tokenizer_name_or_path
    if config.init_noise_prompts or base is None:
        if not config.init_noise_prompts and hub_id(named) is not None:
            logger.warning(
                "The base model has no name to load its tokenizer by. set_classes will load that of %r, which the "
                "adapter names, unless it is given one: set_classes(..., tokenizer=...).",
                named,
            )
        return named or base
    return base


def _from_anywhere(name: str | None) -> str | None:
    """Return the absolute path of a folder, which other working directories find, and any other name as it is."""
    return os.path.abspath(name) if name and os.path.isdir(name) else name


def _target_modules(config: ANPromptConfig, clip_config: PreTrainedConfig) -> str:
    """Return the regular expression of the modules to wrap: first changed to last layer of each tower, the head."""

    def tower(name: str, depth: int) -> str:
        first = 1 if config.updates_attention(name) else config.first_layer(name)
        numbers = "|".join(str(index) for index in range(first - 1, depth))
        return rf"{name}_model\.encoder\.layers\.(?:{numbers})"

    text = tower("text", clip_config.text_config.num_hidden_layers)
    vision = tower("vision", clip_config.vision_config.num_hidden_layers)
    return f"{text}|{vision}|{re.escape(family_of(clip_config).image_head)}"
