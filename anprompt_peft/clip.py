"""`PromptedCLIPModel`: a `CLIPModel` with a forward over classes and images, and the prompts of an adapter in."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel
from transformers.utils import ModelOutput

from .fast.choice import Choice, ChoosingHead
from .fast.encoders import ImageFeatures, image_features, text_features
from .fast.fingerprint import Fingerprint, autocast_state, checksum, hooks, optimizer_steps
from .fast.image_cache import DEFAULT_MAX_BYTES, ImageCache
from .fast.savings import Savings
from .fast.sharding import in_shards, worth_sharding
from .fast.state import ASKED, State
from .method.class_texts import (
    ClassSet,
    check_class_names,
    check_template,
    load_tokenizer,
    tokenize,
    tokenize_classes,
    trim,
)
from .method.config import ANPromptConfig, LogitsKind
from .method.features import at_least_float32, ensemble, frozen_text_features, full_precision, normalize
from .method.losses import Frozen, Scores, Term, clip_logits, loss_terms, score, total_loss
from .method.noise import clean_features, text_targets
from .method.registration import PREFIX
from .method.rephrase import draw_rephrased, vocabulary

IGNORED = -100
"""Label of an image without one, in transformers and in torch's cross entropy."""


@dataclass
class ANPromptOutput(ModelOutput):
    """What an adapted CLIP returns for a batch of B images and C classes.

    All logits and losses are float32, or float64 for a float64 model.

    Attributes:
        loss (`Tensor`, *optional*): scalar, the weighted sum of the loss terms; only with labels.
        logits (`Tensor`): `[B, C]`, the logits to use: fused while training, else what `inference_logits` says.
        logits_class (`Tensor`): `[B, C]`, images against prompted class texts.
        logits_prototype (`Tensor`, *optional*): `[B, C]`, prototypes (NRVPP) against prompted class texts.
        logits_fused (`Tensor`): `[B, C]`, `alpha * logits_class + (1 - alpha) * logits_prototype`.
        logits_ensemble (`Tensor`, *optional*): `[B, C]`, of class logits and the frozen CLIP's; where they are asked.
        image_embeds (`Tensor`): `[B, d]`, normalised.
        prototype_embeds (`Tensor`, *optional*): `[B, d]`, normalised.
        loss_terms (`dict[str, Tensor]`, *optional*): the detached, unweighted scalar terms by name; only with labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_class: Tensor | None = None
    logits_prototype: Tensor | None = None
    logits_fused: Tensor | None = None
    logits_ensemble: Tensor | None = None
    image_embeds: Tensor | None = None
    prototype_embeds: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None


NOT_PREDICTIONS = [each.name for each in fields(ANPromptOutput) if each.name not in ("loss", "logits")]
"""What evaluation does not gather for every image."""


class PromptedCLIPModel(CLIPModel):
    """What an adapted `CLIPModel` can do about classes and images. It is never built directly and has no weights.

    Everything of `CLIPModel` works as before, with the prompts of the active adapter in.
    """

    anprompt_state: State

    accepts_loss_kwargs = False
    """Tells `Trainer` that the loss is a mean over the batch, to be divided by the accumulation steps."""

    main_input_name = "pixel_values"
    """Tells `Trainer` what `include_for_metrics=["inputs"]` means."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Classify images, or score image-text pairs as `CLIPModel` does.

        Adapter and classes are those at the time of the call, whatever other threads choose meanwhile.

        Args:
            input_ids (`Tensor`, *optional*): int64 `[n, L]`. If given, this is `CLIPModel.forward`. Images given in
                this first place, as to transformers' image classifiers, count as `pixel_values`.
            pixel_values (`Tensor`): `[B, 3, H, W]`.
            attention_mask (`Tensor`, *optional*): `[n, L]`, with `input_ids` only.
            position_ids (`Tensor`, *optional*): `[n, L]`, with `input_ids` only.
            return_loss (`bool`, *optional*): CLIP's contrastive loss, with `input_ids` only.
            interpolate_pos_encoding (`bool`): allow other image sizes.
            labels (`Tensor` or `list[int]`, *optional*): int64 `[B]`, positions in the class names; with them come the
                losses. The cross entropies leave out images with the label -100, as transformers' losses do.
            return_dict (`bool`): `False` returns a tuple.
            kwargs: further arguments of `CLIPModel.forward`, with `input_ids` only.

        Returns:
            [`ANPromptOutput`], or transformers' `CLIPOutput` when `input_ids` is given.

        Raises:
            ValueError: if `pixel_values` is missing, `labels` come with `input_ids` or lie outside the classes, no
                adapter is active, or it is to be trained and was loaded without `is_trainable=True`.
            TypeError: for further arguments without `input_ids`.
            NotImplementedError: within `torch.nn.DataParallel`.
        """
        if getattr(self, "_is_replica", False):
            raise NotImplementedError(
                "torch.nn.DataParallel copies CLIP without what an adapter shares among its layers. Use one GPU, or "
                "DistributedDataParallel: accelerate launch or torchrun."
            )
        if pixel_values is None and isinstance(input_ids, Tensor) and input_ids.is_floating_point():
            input_ids, pixel_values = None, input_ids
        if not torch.compiler.is_compiling() and self.head.choice is None:
            texts = input_ids, pixel_values, attention_mask, position_ids, return_loss
            with self.head.holding(self.choose()):
                return PromptedCLIPModel.forward(self, *texts, interpolate_pos_encoding, labels, return_dict, **kwargs)
        if input_ids is not None:
            if labels is not None:
                raise ValueError("labels go with the adapter's own classes: call the model without input_ids.")
            return super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_loss=return_loss,
                interpolate_pos_encoding=interpolate_pos_encoding,
                **kwargs,
                **({} if return_dict else {"return_dict": False}),
            )
        text_arguments = {"attention_mask": attention_mask, "position_ids": position_ids, "return_loss": return_loss}
        if ignored := [*kwargs, *(name for name, value in text_arguments.items() if value is not None)]:
            raise TypeError(
                f"{', '.join(ignored)} would have no effect on images without input_ids. Leave it out; images are "
                "classified with pixel_values, labels, interpolate_pos_encoding and return_dict. Hidden states and "
                "attentions come from get_image_features."
            )
        if pixel_values is None:
            raise ValueError("Give pixel_values to classify images, or pixel_values and input_ids as for CLIPModel.")
        classes, text = self._classes_and_kept_text()
        if labels is not None:
            if isinstance(labels, (list, tuple)):
                with suppress(TypeError, ValueError):  # of names, for example, which are refused below
                    labels = torch.tensor(labels, device=pixel_values.device)
            _check_labels(labels, classes, len(pixel_values))
        if text is None:
            text = self.text_embeds(classes, shard=self.training and self.anprompt_state.shards)
        kind = self.logits_kind(classes)
        with_frozen = (labels is not None or kind == "ensemble") and not self.head.disable_adapters
        seen = image_features(self, pixel_values, interpolate_pos_encoding, with_frozen)
        scores = self.score(text, seen, self.clean_text(classes) if kind == "ensemble" else None)
        rephrased = self._rephrased(classes) if labels is not None and self.training else None
        terms = {} if labels is None else self._loss_terms(scores, classes, text, seen, labels, rephrased)
        loss = total_loss(terms) if terms else None
        if labels is None and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            warnings.warn(
                "Called in training mode without labels: none of ANPrompt's losses is computed. Trainer keeps labels "
                "from the model with label_smoothing_factor or compute_loss_func; ANPromptTrainer smooths them in the "
                "model's own losses.",
                stacklevel=2,
            )
        if loss is not None and self.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                f"No weight of the adapter {self.head.adapter!r} is to be trained: it was loaded for inference. Load "
                "it with PeftModel.from_pretrained(clip, name, is_trainable=True), or call eval() to measure its loss."
            )
        output = ANPromptOutput(
            loss=loss,
            logits=getattr(scores, f"logits_{kind}"),
            loss_terms={name: term.value.detach() for name, term in terms.items()} or None,
            **vars(scores),
        )
        return output if return_dict else output.to_tuple()

    def set_classes(
        self, class_names: list[str] | None, template: str | list[str] | None = None, tokenizer: Any = None
    ) -> None:
        """Choose the classes to tell apart from now on, for every adapter.

        Args:
            class_names (`list[str]` or `None`): any classes; `None` goes back to those the adapter was trained on.
            template (`str` or `list[str]`, *optional*): defaults to the active adapter's.
            tokenizer (*optional*): defaults to the one the adapter's configuration names.

        Raises:
            ValueError: for invalid names or templates, names with the same tokens, or texts that are too long.
        """
        if class_names is None:
            self.anprompt_state.ask_for(None)
            self.name_labels()
            return
        config = self.active_config
        class_names = check_class_names(class_names)
        templates = config.templates if template is None else [template] if isinstance(template, str) else template
        check_template(templates)
        tokenizer = self._own_tokenizer() if tokenizer is None else load_tokenizer(tokenizer, None)
        input_ids = tokenize_classes(class_names, templates, tokenizer, self.config).to(self.device)
        self.anprompt_state.ask_for(ClassSet(tuple(class_names), tuple(templates), input_ids, tokenizer))
        self.name_labels()

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Choose the active adapter, as transformers does, and name its classes in the configuration."""
        super().set_adapter(adapter_name)
        self.name_labels()

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Delete adapters, as transformers does, and name the classes that remain in the configuration."""
        super().delete_adapter(adapter_names)
        for adapter in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.anprompt_state.forget(adapter)
        self.name_labels()

    def name_labels(self) -> None:
        """Name the current classes in `config.id2label` and `config.label2id`, which transformers' pipelines read.

        Where no adapter is active, they are the base model's.
        """
        asked, config = self.anprompt_state.classes, self.head.configs.get(self.head.adapter)
        if config is None:
            self.config.id2label, self.config.label2id = self.anprompt_state.base_labels
            return
        names = asked.names if asked else config.class_names
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: number for number, name in enumerate(names)}

    def set_class_weights(self, weights: Tensor | Sequence[float] | None) -> None:
        """Weight both cross entropies by class, in training and in evaluation, as `F.cross_entropy(weight=...)` does.

        They belong to the current classes: to those asked for with [`set_classes`], until others are, or else to the
        active adapter's.

        Args:
            weights (`Tensor`, array or list, *optional*): positive, `[C]`; `None` weights all classes alike.

        Raises:
            ValueError: if there is not one positive number per class.
        """
        count = len(self.class_names)
        weights = None if weights is None else torch.as_tensor(weights)
        if weights is not None and (weights.shape != (count,) or not bool(((weights > 0) & weights.isfinite()).all())):
            raise ValueError(f"class weights must be {count} positive numbers, one per class, got {weights.tolist()}.")
        self.anprompt_state.class_weights.pop(self._owner_of_classes, None)
        if weights is not None:
            self.anprompt_state.class_weights[self._owner_of_classes] = weights

    @property
    def class_weights(self) -> Tensor | None:
        """What [`set_class_weights`] set for the current classes, `[C]`."""
        return self.anprompt_state.class_weights.get(self._owner_of_classes)

    @property
    def _owner_of_classes(self) -> str:
        return ASKED if self.asked_classes else self.head.adapter

    def set_label_smoothing(self, factor: float) -> None:
        """Smooth the labels of both cross entropies, as `F.cross_entropy(label_smoothing=...)` does.

        Args:
            factor (`float`): 0, the default, to 1, with which labels count nothing.

        Raises:
            ValueError: for any other factor.
        """
        if not 0 <= factor <= 1:
            raise ValueError(f"label smoothing must lie between 0 and 1, got {factor!r}.")
        self.anprompt_state.label_smoothing = factor

    def shard_class_texts(self, shard: bool = True) -> None:
        """Share the encoding of many class texts among the processes of a data-parallel training.

        Text features are computed from scratch in every training step, by default all of them on every process. With
        this, each of W processes encodes 1/W of them. Loss and gradients stay the same. It takes effect in training
        mode with gradients, from `anprompt_peft.fast.sharding.SHARD_FROM` texts on, and changes nothing where there is
        one process.

        Call it only where all processes train one and the same model, with the same classes and in step, as with
        `DistributedDataParallel`: a process that takes no part makes the others wait for ever.

        Args:
            shard (`bool`): whether to share from now on.
        """
        self.anprompt_state.shards = shard

    def encode_classes(self) -> Tensor:
        """Return the prompted, normalised text features `[C, d]` of the current classes.

        Without gradients they are kept until anything they depend on changes: adapter, weights (in-place updates and
        loading included), classes, dtype, device, autocast, forward hooks. Edits of trained weights through `.data`,
        as of a moving average, are noticed on a CPU at once, and on other devices at the next call of `eval()`.
        """
        with self.head.holding(self.head.choice or self.choose()):
            classes, text = self._classes_and_kept_text()
            return self.text_embeds(classes) if text is None else text

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode; results that were kept end with each `eval()`."""
        self.anprompt_state.evaluations += not mode
        return super().train(mode)

    def choose(self) -> Choice:
        """Return what a call that begins now runs with."""
        return Choice(self.head, self.head.adapter, self.head.disable_adapters, self.anprompt_state.classes)

    @property
    def asked_classes(self) -> ClassSet | None:
        """The classes asked for with [`set_classes`]; `None` means those of the active adapter."""
        return self.head.choice.classes if self.head.choice else self.anprompt_state.classes

    @property
    def class_names(self) -> list[str]:
        """Names of the current classes, in the order of the logits."""
        return list(self.classes.names)

    def set_savings(self, savings: Savings) -> None:
        """Choose how a step runs: by default without all work that changes no result.

        Args:
            savings (`Savings`): `Savings(text_chunk=...)` bounds the memory of many classes; `Savings.none()` runs
                CLIP's own forward, layer by layer, with the same results.
        """
        self.anprompt_state.savings = savings

    @property
    def savings(self) -> Savings:
        """How a step runs, as [`set_savings`] chose it."""
        return self.anprompt_state.savings

    def set_image_cache(self, folder: str | Path | None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Cache the frozen work on images on disk, for training without random augmentation.

        With labels, the layers before the first prompt and the frozen branch then run once per image and not once per
        epoch. Images are the same if their pixel values are, so random augmentation defeats it. Results are those of
        a model without it, up to rounding (a cached image has the last bits of its first batch).

        Another base model, device type, dtype or version of torch has files of its own in the folder, so adapters,
        runs and processes may share it. On a GPU every step waits for the pixels to reach the host. It works where
        layers are decomposed (see [`set_savings`]), and needs the vision encoder to be frozen.

        Args:
            folder (`str` or `Path`, *optional*): where; `None` turns it off.
            max_bytes (`int`): most bytes of this user's files in it; ViT-B/16 in float32 takes 0.6 MB per image.

        Raises:
            ValueError: if `max_bytes` is no positive whole number.
            NotADirectoryError: if `folder` is not a folder.
        """
        self.anprompt_state.image_cache = None if folder is None else ImageCache(folder, max_bytes)

    @property
    def image_cache(self) -> ImageCache | None:
        """What [`set_image_cache`] asked for."""
        return self.anprompt_state.image_cache

    @property
    def head(self) -> ChoosingHead:
        """The module that holds the adapters and knows which one is active."""
        return self.visual_projection

    @property
    def active_config(self) -> ANPromptConfig:
        """Configuration of the active adapter, whether adapters are enabled or not.

        Raises:
            ValueError: if none is active.
        """
        if self.head.adapter not in self.head.configs:
            raise ValueError("No ANPrompt adapter is active. Choose one with set_adapter(name).")
        return self.head.configs[self.head.adapter]

    @property
    def classes(self) -> ClassSet:
        """The current classes: those asked for, else those that the active adapter was trained on."""
        return self.asked_classes or self.trained_classes

    @property
    def trained_classes(self) -> ClassSet:
        """The classes that the active adapter was trained on.

        Raises:
            ValueError: if its noise prompts were neither computed nor loaded.
        """
        config, adapter = self.active_config, self.head.adapter
        ids = self.head.anprompt_class_ids[adapter]

        def compute() -> ClassSet:
            if int(ids.min()) < 0:
                raise ValueError(
                    f"The noise prompts of adapter {adapter!r} were neither computed nor loaded. Create the adapter "
                    "with init_noise_prompts=True, or load its weights."
                )
            return ClassSet(tuple(config.class_names), tuple(config.templates), trim(ids, self.config))

        return self.anprompt_state.kept("trained classes", Fingerprint([ids]), compute)

    def text_embeds(self, classes: ClassSet, shard: bool = False) -> Tensor:
        """Return the prompted, normalised text features `[C, d]` of classes, computed anew."""
        input_ids, templates = classes.input_ids.to(self.device), len(classes.templates)
        if shard and worth_sharding(len(input_ids)):
            rows = in_shards(lambda part: self._text_rows(part, classes.input_ids), input_ids)
        else:
            rows = self._text_rows(input_ids, classes.input_ids, templates)
        with full_precision(rows):
            return ensemble(rows, templates)

    def logits_kind(self, classes: ClassSet) -> LogitsKind:
        """Return which logits a call returns for classes: fused ones in training, else as the configuration says."""
        if self.head.disable_adapters:
            return "class"
        return "fused" if self.training else self.active_config.logits_for(classes.names)

    def score(self, text: Tensor, seen: ImageFeatures, clean: Tensor | None = None) -> Scores:
        """Return the logits of encoded images over texts `[C, d]`; with clean texts also those of the ensemble."""
        prompts = None if seen.prompts is None else self.vision_model.post_layernorm(seen.prompts)
        with full_precision(seen.features):
            prototype = None if prompts is None else normalize(at_least_float32(self.head.prototype(prompts)))
            frozen = None
            if clean is not None and seen.frozen is not None:
                frozen = clip_logits(normalize(at_least_float32(seen.frozen)), clean.to(text), self._scale())
            return self.score_features(text, normalize(at_least_float32(seen.features)), prototype, frozen)

    def score_features(
        self, text: Tensor, image: Tensor, prototype: Tensor | None, frozen: Tensor | None = None
    ) -> Scores:
        """Return the logits of normalised images and prototypes `[B, d]`, as [`losses.score`] does."""
        return score(image, prototype, text, self._scale(), self.active_config, frozen)

    @torch.compiler.disable
    def _classes_and_kept_text(self) -> tuple[ClassSet, Tensor | None]:
        """Return the classes and, unless gradients are wanted, their prompted features, computed at most once."""
        classes, head = self.classes, self.head
        weights = [*self.text_model.parameters(), *self.text_projection.parameters(), *head.parameters()]
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return classes, None
        adapter = f".{head.adapter}."
        named = (*self.text_model.named_parameters(), *head.named_parameters(), *head.named_buffers())
        own = [each for name, each in named if PREFIX in name and adapter in f"{name}."]
        trained = [weight for weight in weights if weight.requires_grad and all(weight is not each for each in own)]
        fingerprint = Fingerprint(
            (*weights, *head.anprompt_noise_prompts.values(), classes.input_ids),
            head.adapter,
            head.disable_adapters,
            classes.names,
            torch.is_inference_mode_enabled(),
            autocast_state(self.device.type),
            optimizer_steps(),
            [checksum(each) for each in (*own, *trained)],
            hooks(self.text_model),
            hooks(self.text_projection),
            self.savings,
            self.training,
        )
        return classes, self.anprompt_state.kept("text", fingerprint, lambda: self.text_embeds(classes))

    def _text_rows(self, input_ids: Tensor, source: Tensor | None, templates: int = 1) -> Tensor:
        features = text_features(self, input_ids, source, templates)
        with full_precision(features):
            return normalize(at_least_float32(features))

    def _rephrased(self, classes: ClassSet) -> tuple[Tensor, Tensor] | None:
        """Return prompted features `[m, d]` of rephrased texts, and the frozen CLIP's of the clean ones, if wanted."""
        config = self.active_config
        wanted = config.rephrased_weight and config.rephrased_texts and config.num_prompts
        if self.head.disable_adapters or not wanted:
            return None
        input_ids, clean = self._draw_rephrased(classes)
        return self._text_rows(input_ids, None), clean

    @torch.compiler.disable
    def _draw_rephrased(self, classes: ClassSet) -> tuple[Tensor, Tensor]:
        """Draw token ids `[m, L]` of rephrased texts from torch's random numbers, and return what they should give.

        The ids stay on the host, where [`text_features`] plans with them: no step then waits for the device.
        """
        rng = random.Random(int(torch.randint(2**62, ())))
        tokenizer = self._own_tokenizer() if classes.tokenizer is None else classes.tokenizer
        words = self.anprompt_state.kept("words", Fingerprint((), tokenizer), lambda: vocabulary(tokenizer))
        count = self.active_config.rephrased_texts
        drawn = draw_rephrased(classes.names, classes.templates, words, count, rng)
        input_ids = tokenize([*drawn.texts, *drawn.anchors], tokenizer, self.config, truncate=True)
        kept = frozen_text_features(self, input_ids[len(drawn.texts) :])
        rows = torch.tensor(drawn.classes).to(kept.device, non_blocking=True)
        return input_ids, torch.cat([self._text_targets(classes)[0][rows].to(kept), kept])

    def _own_tokenizer(self) -> Any:
        """Return the tokenizer that the active adapter's configuration names, loaded at most once."""
        config = self.active_config
        config.tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_name_or_path)
        return config.tokenizer

    def _loss_terms(
        self,
        scores: Scores,
        classes: ClassSet,
        text: Tensor,
        seen: ImageFeatures,
        labels: Tensor,
        rephrased: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Term]:
        with full_precision(text):
            frozen = None
            if seen.frozen is not None:
                clean, perturbed = self._text_targets(classes)
                frozen = Frozen(normalize(at_least_float32(seen.frozen)), clean.to(text), perturbed.to(text))
            weights = self.class_weights
            if weights is not None:
                weights = weights.to(text)
            smoothing = self.anprompt_state.label_smoothing
            return loss_terms(
                scores, text, labels, frozen, self._scale(), self.active_config, weights, rephrased, smoothing
            )

    @torch.compiler.disable
    def clean_text(self, classes: ClassSet) -> Tensor:
        """Return the frozen CLIP's features w `[C, d]`, computed at most once."""
        frozen = [each for name, each in self.text_model.named_parameters() if PREFIX not in name]
        hooked = hooks(self.text_model), hooks(self.text_projection)
        fingerprint = Fingerprint((*frozen, *self.text_projection.parameters(), classes.input_ids), *hooked)
        return self.anprompt_state.kept("clean text", fingerprint, lambda: clean_features(self, classes))

    def _text_targets(self, classes: ClassSet) -> tuple[Tensor, Tensor]:
        """Return the frozen CLIP's clean and perturbed features w and u, each `[C, d]`."""
        head, adapter = self.head, self.head.adapter
        own = head.anprompt_clean_features[adapter], head.anprompt_perturbed_features[adapter]
        if self.asked_classes is None:
            return own
        fingerprint = Fingerprint((classes.input_ids, *own))  # an adapter's own features are new with every adapter
        return self.anprompt_state.kept(
            f"text targets of {adapter}", fingerprint, lambda: text_targets(self, classes, self.active_config)[:2]
        )

    def _scale(self) -> Tensor:
        return at_least_float32(self.logit_scale).exp()


def _check_labels(labels: Any, classes: ClassSet, images: int) -> None:
    """Raise on labels that are no class numbers; on a GPU, where a look would wait, only their type is checked."""
    count = len(classes.names)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (images,):
        got = f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise ValueError(f"labels must be one class number per image, torch.int64 of shape [{images}], got {got}.")
    if labels.device.type != "cpu" or not labels.numel() or torch.compiler.is_compiling():
        return
    if (((labels < 0) & (labels != IGNORED)) | (labels >= count)).any():
        raise ValueError(
            f"labels must lie between 0 and {count - 1} for {count} classes, or be {IGNORED} for images to leave out, "
            f"got {labels.tolist()}."
        )
