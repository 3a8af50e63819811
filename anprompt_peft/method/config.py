"""`ANPromptConfig`: every choice of the method, checked before anything is built."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from huggingface_hub.dataclasses import type_validator
from peft.config import PeftConfig
from transformers import PreTrainedConfig

from .class_texts import as_read, check_class_names, check_descriptions, check_template, composed
from .families import CLIP, FAMILIES, Family, family_of, joint_width
from .registration import peft_type

NoiseSource = Literal["text", "descriptions", "gaussian"]
NoiseIntegration = Literal["concat", "add"]
NoiseMap = Literal["fixed", "learned"]
LogitsKind = Literal["fused", "class", "prototype", "ensemble"]
InferenceLogits = Literal["auto", LogitsKind]

DEFAULT_DEPTH, FINITE = 7 / 12, sys.float_info.max
PAPER = {
    "similarity_weight": 0.5, "frozen_share": 0.0, "text_update_rank": None, "rephrased_weight": 0.0,
    "classifier_weight": 0.0,
}  # fmt: skip
FORMAT_VERSION = 4  # of a saved configuration: grows when an older version of this package would load it wrongly
LAST_WITHOUT_UPDATES_ALONE = 3  # the last format in which an adapter without prompts has no updates, whatever it says


def _field(default: Any, text: str, **checks: Any) -> Any:
    """Return a field with its help and checks: `least` and `most` are the range of its numbers.

    The others are about saved configurations: `cap` is the largest number that is read, `saved` the type where it
    differs, and `formerly` has, by format, what a configuration without the field means.
    """
    return field(default=default, metadata={"help": text, **checks})


@dataclass
class ANPromptConfig(PeftConfig):
    """Configuration of an [`ANPromptModel`], the adapter of *ANPrompt* (https://arxiv.org/abs/2508.04677) for CLIP.

    Args:
        class_names (`list[str]`): The classes to adapt to, in the order of the integer labels. At least two, all
            different, none empty.
        template (`str` or `list[str]`): The prompt around a class name, with `{}` where the name goes. With several
            templates a class is represented by the normalised mean of its normalised text features.
        tokenizer_name_or_path (`str` or tokenizer, *optional*): Where the tokenizer comes from: a Hub id, a directory
            or a tokenizer object (its `name_or_path` is what is saved). Defaults to the base model's `name_or_path`.
        num_virtual_tokens (`int`): Number N of learnable prompt tokens. Default 5.
        num_noise_tokens (`int`): Number K of noise prompts (KMeans centroids of the perturbed class features); frozen.
            Default 4. With 0 the method is MMRL; with `num_virtual_tokens=0` as well there are no prompts, and without
            updates (the three ranks below) the adapted model is plain CLIP.
        latent_dim (`int`, *optional*): Width r of the latent space in which tokens and noise prompts live. Defaults to
            CLIP's projection dim.
        text_layers (`int` or `list[int]`, *optional*): Text encoder layers that receive prompts: a list of 1-based
            numbers or an int k for the last k. Defaults to the last 7/12 of the encoder (layers 6 to 12 of 12).
        vision_layers (`int` or `list[int]`, *optional*): The same for the vision encoder.
        noise_integration (`"concat"` or `"add"`): `concat` puts the noise prompts after the learnable tokens (N + K
            prompts), `add` sums them (needs N = K).
        noise_map (`"fixed"` or `"learned"`): How noise prompts get from the projection dim to `latent_dim` when the
            two differ: through a seeded orthogonal matrix, or through a trained linear layer.
        projection_rank (`int`, *optional*): If given, the prompt projections of a tower share one linear map, and each
            layer adds a residual of this rank (MMRL++ uses 4). By default every layer has a full map of its own.
        prototype_rank (`int`, *optional*): If given, the prototype projection is the frozen visual projection plus a
            trained update of this rank (MMRL++ uses 64). By default a full copy of the visual projection is trained.
        text_update_rank (`int`, *optional*): Rank of a trained update `h + B A h` of the hidden states that enter each
            layer of the text encoder, those without prompts too. Default 8; `None` has none.
        vision_lora_rank (`int`, *optional*): Rank of trained updates `W x + B A x / sqrt(rank)` of the four attention
            matrices of each layer of the vision encoder, as LoRA has them; `None`, the default, has none.
        text_lora_rank (`int`, *optional*): The same for the text encoder.
        denoiser (`str`, *optional*): Folder or Hub id of a text denoiser of this CLIP, which a new adapter starts from
            and keeps: all its texts are read by the denoised text encoder. A saved adapter has it within.
        denoiser_rank (`int`, *optional*): Rank of the denoiser within, which a new adapter reads from it; `None`
            without one.
        prompt_mixing (`float`): Share beta of the new prompts when a vision layer replaces the ones before it; `1 -
            beta` of the previous layer's output stays. Default 1.0, plain replacement.
        noise_source (`str` or `list[str]`, *optional*): What perturbs the class texts: `text` (typos, dropped words,
            paraphrased templates), `descriptions`, `gaussian` (noise in feature space), or several. Defaults to
            `text`, plus `descriptions` when given.
        descriptions (`dict[str, list[str]]`, *optional*): Sentences about each class, for the `descriptions` source.
        noise_scale (`float`): Weight of the perturbed feature in the weak fusion `normalize(clean + noise_scale *
            perturbed)`.
        noise_draws (`int`): Perturbed features per class and source. Default 4.
        noise_seed (`int`): Seed of the perturbation, of KMeans and of the fixed noise map.
        alpha (`float`): Weight of the class logits against the prototype logits, in the fused logits and in the loss.
        similarity_weight (`float`): Weight of the similarity loss against the frozen CLIP. Default 3.
        waloss_weight (`float`): Weight of the WALoss.
        rephrased_weight (`float`): Weight of the similarity of rephrased texts' prompted features to the frozen
            features of what they rephrase, in training. Default 10, or 0 with a denoiser, which has learnt that for
            all classes: on top of it, rephrased texts of a few make the others less robust.
        rephrased_texts (`int`): Rephrased class texts that a training step draws, and half as many texts about other
            words, which keep their features. Default 16; 0 draws none.
        inference_logits (`"auto"`, `"fused"`, `"class"`, `"prototype"` or `"ensemble"`): Which logits the model
            returns as `logits`. `auto` takes `fused` when all asked classes were trained on and `ensemble` otherwise.
        frozen_share (`float`): Share of the frozen CLIP's logits in the `ensemble`; the rest are class logits. With 0
            it is `class`, at no cost; otherwise the frozen encoders run too. Default 0.5.
        classifier_weight (`float`): Weight of the anchored classifier's log-probabilities beside the method's, for
            classes trained on, once `fit_classifier` has fitted one, as `ANPromptTrainer` does at the end. 0 leaves it
            out. Default 2.
        classifier_strength (`float`, *optional*): How strongly the fitted classifier is held to the class texts;
            `fit_classifier` writes it. `None` where none is fitted, as in every new adapter.
        init_noise_prompts (`bool`): Whether creating the adapter computes its noise prompts. It is `False` in a saved
            adapter's configuration, where they come with the weights.
        training_facts (`dict`, *optional*): What `describe_training` attached: facts for the model card, kept with the
            adapter.

    Raises:
        ValueError: for any value outside its allowed range; the message names the value and the allowed ones.
    """

    class_names: list[str] = field(default_factory=list, metadata={"help": "Classes to adapt to, in label order."})
    template: str | list[str] = _field("a photo of a {}.", "Text(s) around a class name.")
    tokenizer_name_or_path: Any = _field(None, "Tokenizer: Hub id, folder or object.", saved=str | None)
    num_virtual_tokens: int = _field(5, "Number N of learnable prompt tokens.", least=0, cap=1024)
    num_noise_tokens: int = _field(4, "Number K of frozen noise prompts.", least=0, cap=1024)
    latent_dim: int | None = _field(None, "Width of the latent prompt space.", least=1, cap=65536)
    text_layers: int | list[int] | None = _field(None, "Text layers, or the last k.")
    vision_layers: int | list[int] | None = _field(None, "Vision layers, or the last k.")
    noise_integration: NoiseIntegration = _field("concat", "'concat', or 'add' (N = K).")
    noise_map: NoiseMap = _field("fixed", "Map into another latent_dim.")
    projection_rank: int | None = _field(None, "Rank of residuals of a shared map.", least=1)
    prototype_rank: int | None = _field(None, "Rank of the update of the visual projection.", least=1)
    text_update_rank: int | None = _field(8, "Rank of the text layers' updates.", least=1, formerly={1: None, 2: None})
    vision_lora_rank: int | None = _field(None, "Rank of updates of the vision layers' attention.", least=1)
    text_lora_rank: int | None = _field(None, "Rank of updates of the text layers' attention.", least=1)
    denoiser: str | None = _field(None, "Text denoiser to start from: folder or Hub id.")
    denoiser_rank: int | None = _field(None, "Rank of the denoiser within.", least=1)
    prompt_mixing: float = _field(1.0, "Share of new prompts where they replace others.", least=0, most=1)
    noise_source: NoiseSource | list[NoiseSource] | None = _field(None, "What perturbs.")
    descriptions: dict[str, list[str]] | None = _field(
        None, "Sentences about each class.", saved=dict[str, list[str] | str] | None
    )
    noise_scale: float = _field(0.1, "Weight of the perturbed feature in the fusion.", least=0)
    noise_draws: int = _field(4, "Perturbed features per class and source.", least=1, cap=1000)
    noise_seed: int = _field(0, "Seed of perturbation, KMeans and the fixed map.", least=0, most=2**32 - 1)
    alpha: float = _field(0.7, "Weight of class logits against prototype logits.", least=0, most=1)
    similarity_weight: float = _field(3.0, "Weight of the similarity loss.", least=0)
    waloss_weight: float = _field(1.0, "Weight of the WALoss.", least=0)
    rephrased_weight: float = _field(
        None, "Weight of rephrased texts' similarity.", least=0, formerly={1: 0.0, 2: 0.0}
    )
    rephrased_texts: int = _field(16, "Rephrased class texts of a training step.", least=0, cap=1000)
    inference_logits: InferenceLogits = _field("auto", "Which logits are returned.")
    frozen_share: float = _field(0.5, "Share of the frozen CLIP in the ensemble.", least=0, most=1, formerly={1: 0.0})
    classifier_weight: float = _field(
        2.0, "Weight of the classifier of the classes trained on.", least=0, formerly={1: 0.0, 2: 0.0, 3: 0.0}
    )
    classifier_strength: float | None = _field(None, "Pull of the fitted classifier to the texts.", least=0)
    init_noise_prompts: bool = _field(True, "Compute the noise prompts on creation.")
    training_facts: dict[str, Any] | None = _field(None, "Facts for the model card.")
    format_version: InitVar[int] = FORMAT_VERSION

    def __post_init__(self, format_version: int) -> None:
        super().__post_init__()
        _check("format_version", format_version, int, 1, FORMAT_VERSION)
        self.peft_type = peft_type()
        self.target_modules: str | None = None
        self.tokenizer: Any = None
        self.is_injected = False
        if self.tokenizer_name_or_path is not None and not isinstance(self.tokenizer_name_or_path, str):
            self.tokenizer = self.tokenizer_name_or_path
            self.tokenizer_name_or_path = getattr(self.tokenizer, "name_or_path", None) or None
        if self.task_type is not None:
            raise ValueError(
                f"task_type={self.task_type!r} does not apply: none of PEFT's task classes fits CLIP's forward. Leave "
                "it None."
            )
        if self.rephrased_weight is None:
            self.rephrased_weight = 10.0 if self.denoiser is None else 0.0
        self.class_names = check_class_names(self.class_names)
        check_template(self.template)
        for each in fields(ANPromptConfig):
            if "least" in each.metadata or get_origin(TYPES[each.name]) is Literal:
                least, most = each.metadata.get("least"), each.metadata.get("most")
                _check(each.name, getattr(self, each.name), TYPES[each.name], least, most)
        for name in ("text_layers", "vision_layers"):
            given = getattr(self, name)
            _check(name, list(given) if isinstance(given, tuple) else given, TYPES[name])
        _check("denoiser", self.denoiser, TYPES["denoiser"])
        if not isinstance(self.descriptions, Mapping):
            _check("descriptions", self.descriptions, TYPES["descriptions"])
        self._check_prompts()
        self._check_noise()
        if format_version <= LAST_WITHOUT_UPDATES_ALONE and self.num_prompts == 0:
            self.text_update_rank = None

    def _check_prompts(self) -> None:
        if self.noise_integration == "add" and self.num_virtual_tokens != self.num_noise_tokens:
            raise ValueError(
                "noise_integration='add' sums each noise prompt with a learnable token, so it needs as many of one as "
                f"of the other, not num_virtual_tokens={self.num_virtual_tokens} and "
                f"num_noise_tokens={self.num_noise_tokens}. Make them equal or use 'concat'."
            )
        if self.num_prompts == 0 and self.inference_logits == "prototype":
            raise ValueError("inference_logits='prototype' needs prompts: there are none with 0 tokens of both kinds.")

    def _check_noise(self) -> None:
        if isinstance(self.noise_source, str):
            self.noise_source = [self.noise_source]
        for source in self.noise_source or ():
            _check("noise_source", source, NoiseSource)
        if self.noise_source is not None and (
            not self.noise_source or len(set(self.noise_source)) < len(self.noise_source)
        ):
            raise ValueError(
                f"noise_source={self.noise_source!r} must name one or more different sources of "
                f"{list(get_args(NoiseSource))}."
            )
        if self.descriptions is not None:
            self.descriptions = {
                composed(name): [texts] if isinstance(texts, str) else list(texts)
                for name, texts in self.descriptions.items()
            }
        if "descriptions" in self.noise_sources:
            check_descriptions(self.descriptions, self.class_names)

    @classmethod
    def paper(cls, **fields: Any) -> ANPromptConfig:
        """Return the configuration closest to the paper, without what this package adds.

        That is: `similarity_weight` 0.5, no `frozen_share`, no `text_update_rank`, no `rephrased_weight` and no
        `classifier_weight`. Further `fields` may be given, these five included. docs/ablations.md compares it with the
        defaults.
        """
        return cls(**{**PAPER, **fields})

    @property
    def templates(self) -> list[str]:
        """`template` as a list."""
        return [self.template] if isinstance(self.template, str) else list(self.template)

    @property
    def noise_sources(self) -> list[NoiseSource]:
        """`noise_source` as a list, with the default filled in."""
        if isinstance(self.noise_source, str):
            return [self.noise_source]
        if self.noise_source is not None:
            return list(self.noise_source)
        return ["text", "descriptions"] if self.descriptions else ["text"]

    @property
    def num_prompts(self) -> int:
        """Number of prompts per target layer: N + K for `concat`, N for `add`."""
        if self.noise_integration == "add":
            return self.num_virtual_tokens
        return self.num_virtual_tokens + self.num_noise_tokens

    def is_updated(self, tower: str) -> bool:
        """Return whether all layers of the `"text"` or `"vision"` encoder have trained updates."""
        ranks = (self.text_update_rank, self.text_lora_rank) if tower == "text" else (self.vision_lora_rank,)
        return any(rank is not None for rank in ranks)

    def updates_attention(self, tower: str) -> bool:
        """Return whether the attention matrices of all layers of an encoder have updates, trained or a denoiser's."""
        ranks = (self.text_lora_rank, self.denoiser_rank) if tower == "text" else (self.vision_lora_rank,)
        return any(rank is not None for rank in ranks)

    def is_trained(self, tower: str) -> bool:
        """Return whether an encoder has prompts or updates."""
        return self.num_prompts > 0 or self.is_updated(tower)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.is_trained("text") or self.is_trained("vision")

    def first_layer(self, tower: str) -> int:
        """Return the 1-based number of the first layer of an encoder whose outputs training may change."""
        layers = self.text_layers if tower == "text" else self.vision_layers
        assert isinstance(layers, list)
        return 1 if self.is_updated(tower) else layers[0]

    def logits_for(self, names: Iterable[str]) -> LogitsKind:
        """Return which logits answer for classes of some names, as `inference_logits` says."""
        kind: InferenceLogits = self.inference_logits
        if kind == "auto":
            kind = "fused" if set(map(as_read, names)) <= set(map(as_read, self.class_names)) else "ensemble"
        plain = not self.trains or (kind == "ensemble" and self.frozen_share == 0)
        same = kind == "fused" and self.num_prompts == 0
        return "class" if plain or same else kind

    @property
    def family(self) -> Family:
        """The family that a saved or resolved configuration is for: CLIP's, unless `auto_mapping` names another."""
        name = (self.auto_mapping or {}).get("base_model_class")
        return next((each for each in FAMILIES.values() if each.model.__name__ == name), CLIP)

    def resolved(self, clip_config: PreTrainedConfig) -> ANPromptConfig:
        """Return a copy that shares no list with this object, completed by [`resolve`] for a backbone."""
        own = copy.copy(self)
        own.__dict__ |= {name: copy.deepcopy(it) for name, it in vars(self).items() if isinstance(it, (dict, list))}
        own.resolve(clip_config)
        return own

    def resolve(self, clip_config: PreTrainedConfig) -> None:
        """Fill in, in place, what depends on the backbone, and check it against the backbone.

        Args:
            clip_config (`CLIPConfig`): the configuration of the model to adapt.

        Raises:
            ValueError: if a saved adapter was made for another class of models, a layer number lies outside the
                encoder, a rank exceeds the width it applies to, or the configuration of a saved adapter names a
                denoiser without its rank.
        """
        family = family_of(clip_config)
        if not self.init_noise_prompts and self.family is not family:
            base = f", {self.base_model_name_or_path}" if self.base_model_name_or_path else ""
            raise ValueError(
                f"The adapter was made for transformers' {self.family.model.__name__} and does not fit a "
                f"{family.model.__name__}. Load the model that it was trained with{base}, and then the adapter."
            )
        if family is not CLIP:
            self.auto_mapping = _named(family)
        self.latent_dim = self.latent_dim or joint_width(clip_config)
        self.text_layers = resolve_layers("text_layers", self.text_layers, clip_config.text_config.num_hidden_layers)
        self.vision_layers = resolve_layers(
            "vision_layers", self.vision_layers, clip_config.vision_config.num_hidden_layers
        )
        widths = (clip_config.text_config.hidden_size, clip_config.vision_config.hidden_size)
        if self.projection_rank is not None:
            _check("projection_rank", self.projection_rank, int, 1, min(self.latent_dim, *widths))
        for name in ("text_update_rank", "text_lora_rank", "denoiser_rank", "vision_lora_rank"):
            _check(name, getattr(self, name), TYPES[name], 1, widths[name == "vision_lora_rank"])
        if self.denoiser is not None and self.denoiser_rank is None and not self.init_noise_prompts:
            raise ValueError(
                f"denoiser={self.denoiser!r} without denoiser_rank: the adapter has lost the denoiser that it was "
                "trained with. Use its own adapter_config.json, or set denoiser to None for an adapter without one."
            )
        if self.prototype_rank is not None:
            _check("prototype_rank", self.prototype_rank, int, 1, min(joint_width(clip_config), widths[1]))
        self.noise_source = self.noise_sources

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for saving. The noise prompts of an adapter are saved with its weights."""
        computes = self.init_noise_prompts and not self.is_injected
        return {**super().to_dict(), "init_noise_prompts": computes, "format_version": FORMAT_VERSION}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the configuration as PEFT does; the base model is recorded as the plain model it is."""
        if kwargs.get("auto_mapping_dict") is not None:
            kwargs["auto_mapping_dict"] = _named(self.family)
        super().save_pretrained(save_directory, **kwargs)


TYPES = get_type_hints(ANPromptConfig)


def _named(family: Family) -> dict[str, str]:
    """Return how PEFT records the class of a base model."""
    return {"base_model_class": family.model.__name__, "parent_library": "transformers"}


def resolve_layers(name: str, layers: int | list[int] | None, depth: int) -> list[int]:
    """Return the sorted 1-based layer numbers meant by a `text_layers` or `vision_layers` value.

    Args:
        name (`str`): the field's name, for the error message.
        layers (`int`, `list[int]` or `None`): the last k, explicit 1-based numbers, or the default last 7/12.
        depth (`int`): number of layers of the encoder.
    """
    if layers is None:
        layers = max(1, round(DEFAULT_DEPTH * depth))
    if isinstance(layers, int):
        _check(name, layers, int, 1, depth)
        return list(range(depth - layers + 1, depth + 1))
    layers = list(layers)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"{name}={layers} must be different layer numbers between 1 and {depth}, at least one.")
    for layer in layers:
        _check(name, layer, int, 1, depth)
    return sorted(layers)


def mismatch(value: Any, kind: Any, least: float | None = None, most: float | None = None) -> str | None:
    """Return what a value must be, such as `"must be an integer, at least 1"`, or `None` if it is that.

    Args:
        value: any value.
        kind: the type, as in an annotation. An integer is good for a `float` as well.
        least, most (`float`, *optional*): the range of a number; a `float` in a range is finite.
    """
    kinds = (kind, *get_args(kind))
    highest = most if most is not None else FINITE if float in kinds else math.inf
    numeric = {int, float} & {*kinds} and bool not in kinds
    try:
        if numeric and isinstance(value, bool):  # an integer to huggingface_hub 1.5
            raise TypeError
        type_validator("", 0.0 if float in kinds and type(value) is int else value, kind)
        if least is None or value is None or least <= value <= highest:
            return None
    except TypeError:
        pass
    if get_origin(kind) is Literal:
        return f"is not one of {list(get_args(kind))}"
    if least is None:
        return f"must be of type {kind.__name__ if isinstance(kind, type) else str(kind).replace('typing.', '')}"
    number = "an integer" if int in kinds else "a finite number"
    return f"must be {number}, {f'at least {least}' if most is None else f'between {least} and {most}'}"


def _check(name: str, value: Any, kind: Any, least: float | None = None, most: float | None = None) -> None:
    if wrong := mismatch(value, kind, least, most):
        raise ValueError(f"{name}={value!r} {wrong}.")
