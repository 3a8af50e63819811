"""`PromptedModel`: gives a `CLIPModel` a forward over classes and images, with the prompts of an adapter in."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .anchored import fit_anchored
from .fast.image_cache import DEFAULT_MAX_BYTES, ImageCache
from .fast.plan import Choice, Plan
from .fast.planning import classifier, config_of, plan_call, plan_classes, trained_classes
from .fast.run import encode_classes, join_classifier, logit_bias, logit_scale, run
from .fast.savings import Savings
from .fast.state import State
from .method.class_texts import (
    ClassSet,
    check_class_names,
    check_template,
    load_tokenizer,
    own_tokenizer,
    tokenize_classes,
)
from .method.config import ANPromptConfig, LogitsKind
from .method.families import image_head
from .method.features import Pass, evaluating, unit
from .method.layer import ANPromptHead
from .method.losses import Scores, score, total_loss

SCORES = tuple(each.name for each in fields(Scores))  # `vars` cannot be compiled by torch 2.10
IGNORED = -100
"""Label of an image without one, in transformers and in torch's cross entropy."""


@dataclass
class ANPromptOutput(ModelOutput):
    """What an adapted CLIP returns for a batch of B images and C classes.

    All logits and losses are float32, or float64 for a float64 model.

    Attributes:
        loss (`Tensor`, *optional*): scalar, the weighted sum of the loss terms; only with labels.
        logits (`Tensor`): `[B, C]`, the logits to use: fused while training, else what `inference_logits` says, with
            the classifier that [`fit_classifier`] fitted joined to them.
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


if TYPE_CHECKING:
    from transformers import PreTrainedModel as DualEncoder
else:
    DualEncoder = object  # the class of an adapted model is made of this mixin and the model's own class


class PromptedModel(DualEncoder):
    """What an adapted model can do about classes and images. It is a mixin of the model's own class, without weights.

    Everything of that class works as before, with the prompts of the active adapter in.
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
        plan: Plan | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify images, or score image-text pairs as the model's own class does.

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
            plan (`Plan`, *optional*): what [`plan`] returned for this call; by default it is made here.
            kwargs: further arguments of `CLIPModel.forward`, with `input_ids` only.

        Returns:
            [`ANPromptOutput`], or transformers' `CLIPOutput` when `input_ids` is given.

        Raises:
            ValueError: if `pixel_values` is missing, `labels` come with `input_ids` or lie outside the classes, the
                plan was made for another model or mode, or without labels, no adapter is active, or it is to be
                trained and was loaded without `is_trainable=True`.
            TypeError: for further arguments without `input_ids`, or a plan that is not one.
            NotImplementedError: within `torch.nn.DataParallel`.
        """
        if getattr(self, "_is_replica", False):
            raise NotImplementedError(
                "torch.nn.DataParallel copies CLIP without what an adapter shares among its layers. Use one GPU, or "
                "DistributedDataParallel: accelerate launch or torchrun."
            )
        input_ids, pixel_values = _texts_and_images(input_ids, pixel_values)
        if input_ids is not None:
            if labels is not None or plan is not None:
                raise ValueError("labels go with the adapter's own classes: call the model without input_ids.")
            return super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_loss=return_loss,
                interpolate_pos_encoding=interpolate_pos_encoding,
                prompt_context=self.head.active_pass,
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
        if plan is None:
            plan = self.plan(labels, pixel_values, interpolate_pos_encoding)
        self._check_plan(plan)
        labels = _checked_labels(labels, plan, pixel_values)
        logits, scores, terms = run(self, plan, pixel_values, labels, interpolate_pos_encoding)
        loss = total_loss(terms) if terms else None
        self._check_training(loss, plan)
        output = ANPromptOutput(
            loss=loss,
            logits=logits,
            loss_terms={name: term.value.detach() for name, term in terms.items()} or None,
            **{name: getattr(scores, name) for name in SCORES},
        )
        return output if return_dict else output.to_tuple()

    @torch.compiler.disable(reason="a call is planned on the host: give it plan=model.plan(labels)")
    def plan(
        self,
        labels: Any = None,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        choice: Choice | None = None,
        kind: LogitsKind | None = None,
    ) -> Plan:
        """Decide on the host all that a call is not arithmetic: classes, texts and their packing, drawn texts, caches.

        `forward` does so itself. With a plan made before, all of it is arithmetic, and so is one graph:

        ```py
        >>> compiled = torch.compile(model, fullgraph=True)
        >>> compiled(pixel_values=pixels, labels=labels, plan=model.plan(labels)).loss.backward()
        ```

        `torch.compile(model)` of a `PeftModel` makes the plan before its graph begins, if none is given. Where the
        compiled module is another one around the model, as after `DistributedDataParallel(model)`, give it.

        A plan holds for one call, in the mode, the state of gradients and the autocast that it was made in: call it as
        the model is called.

        Args:
            labels (*optional*): of the call; only whether there are any counts.
            pixel_values (`Tensor`, *optional*): of the call; only the image cache reads them.
            interpolate_pos_encoding (`bool`): as in the call.
            choice (`Choice`, *optional*): what [`choose`] returned; defaults to the current one.
            kind (`LogitsKind`, *optional*): the logits to return, instead of those that the configuration says.

        Raises:
            ValueError: if no adapter is active.
        """
        images = pixel_values, interpolate_pos_encoding
        return plan_call(self, choice or self.choose(), labels is not None, *images, kind)

    @torch.compiler.disable
    def with_plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords of a call with its plan, if it classifies images and has none."""
        given = defaultdict(lambda: None, _FORWARD.bind_partial(self, *args, **kwargs).arguments)
        texts, images = _texts_and_images(given["input_ids"], given["pixel_values"])
        if given["plan"] is not None or texts is not None or images is None:
            return kwargs
        return {**kwargs, "plan": self.plan(given["labels"], images, bool(given["interpolate_pos_encoding"]))}

    def _check_plan(self, plan: Plan) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be what model.plan(labels) returned, got {plan!r}.")
        if self.head.configs.get(plan.adapter) is not plan.config:
            raise ValueError(
                f"This plan was made for another model, or an adapter {plan.adapter!r} that is gone. Make it with "
                "model.plan(labels) of this one."
            )
        if plan.training != self.training:
            mode = "training" if plan.training else "evaluation"
            raise ValueError(f"This plan was made in {mode} mode. Make it with model.plan(labels) in the call's mode.")

    def _check_training(self, loss: Tensor | None, plan: Plan) -> None:
        """Warn of training without a loss, and raise `ValueError` if nothing is trained."""
        if not (self.training and torch.is_grad_enabled()):
            return
        if loss is None and not torch.compiler.is_compiling():
            warnings.warn(
                "Called in training mode without labels: none of ANPrompt's losses is computed. Trainer keeps labels "
                "from the model with label_smoothing_factor or compute_loss_func; ANPromptTrainer smooths them in the "
                "model's own losses.",
                stacklevel=3,
            )
        if loss is not None and not loss.requires_grad:
            raise ValueError(
                f"No weight of the adapter {plan.adapter!r} is to be trained: it was loaded for inference. Load "
                "it with PeftModel.from_pretrained(clip, name, is_trainable=True), or call eval() to measure its loss."
            )

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
        tokenizer = own_tokenizer(config) if tokenizer is None else load_tokenizer(tokenizer, None)
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
        """Name the current classes, or the base model's, in `config.id2label` and back, as pipelines read them."""
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
        owner, stored = self.choose().owner_of_classes, self.anprompt_state.class_weights
        stored.pop(owner, None)
        if weights is not None:
            stored[owner] = weights

    @property
    def class_weights(self) -> Tensor | None:
        """What [`set_class_weights`] set for the current classes, `[C]`."""
        return self.anprompt_state.class_weights.get(self.choose().owner_of_classes)

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

    def fit_classifier(
        self, batches: Iterable[Mapping[str, Any]], strength: float | None = None, seed: int = 0
    ) -> float:
        """Fit the active adapter's anchored classifier, which then joins `logits` in evaluation; return its strength.

        It is [`~anprompt_peft.anchored.fit_anchored`] of the frozen CLIP's features, with the adapter's class weights,
        if it has any; the adapter keeps and saves it. It takes the place of an earlier one.

        Args:
            batches (`Iterable`): of `pixel_values` `[B, 3, H, W]` and `labels`, int64 `[B]`, positions in the classes
                that the adapter was trained on; a `DataLoader`, for example. Images should not be augmented. Those
                with the label -100 are left out.
            strength (`float`, *optional*): how strongly it is held to the class texts; by default found by folds.
            seed (`int`): of the folds.

        Raises:
            ValueError: if `classifier_weight` is 0, other classes are asked for, or a batch has no labels of these
                classes.
        """
        config, adapter = self.active_config, self.head.adapter
        self.check_classifier()
        features, numbers = [], []
        for batch in batches:
            if "labels" not in batch or "pixel_values" not in batch:
                raise ValueError(f"A batch to fit the classifier on needs pixel_values and labels, it has {[*batch]}.")
            labels = torch.as_tensor(batch["labels"])
            kept = labels != IGNORED
            if ((labels[kept] < 0) | (labels[kept] >= len(config.class_names))).any():
                raise ValueError(
                    f"labels must lie between 0 and {len(config.class_names) - 1}, or be {IGNORED}, to fit the "
                    f"classifier, got {labels.tolist()}."
                )
            features.append(self.frozen_image_features(batch["pixel_values"])[kept.to(self.device)])
            numbers.append(labels[kept])
        if not sum(map(len, numbers)):
            raise ValueError("The classifier needs at least one image with a label; there is none.")
        fitted = fit_anchored(
            torch.cat(features),
            torch.cat(numbers).to(self.device),
            self.head.anprompt_clean_features[adapter],
            logit_scale(self),
            self.anprompt_state.class_weights.get(adapter),
            strength,
            seed,
        )
        self.head.set_classifier(adapter, *fitted)
        return fitted.strength

    def check_classifier(self) -> None:
        """Raise `ValueError` if [`fit_classifier`] would, whatever the images."""
        if not self.active_config.classifier_weight:
            raise ValueError(
                "classifier_weight=0 leaves the classifier out. Set it first, as "
                "ANPromptConfig(classifier_weight=0.5, ...) or model.active_config.classifier_weight = 0.5."
            )
        if self.anprompt_state.classes is not None:
            raise ValueError(
                f"The classifier is one of the classes that the adapter was trained on, and {self.class_names} are "
                "asked for. Call set_classes(None) first."
            )

    @torch.no_grad()
    def frozen_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the frozen CLIP's normalised features `[B, d]` of images `[B, 3, H, W]`, in evaluation mode."""
        with evaluating(self):
            pixels = pixel_values.to(self.device, self.dtype)
            return unit(self.get_image_features(pixels, prompt_context=Pass()).pooler_output, self)

    @property
    def has_classifier(self) -> bool:
        """Whether the active adapter's classifier is fitted and has weight."""
        return self.head.adapter in self.head.anprompt_classifier and bool(self.active_config.classifier_weight)

    def join_classifier(self, logits: Tensor, names: tuple[str, ...], frozen: Tensor) -> Tensor:
        """Return logits `[B, C]` of named classes with the active adapter's classifier, if it has one, joined.

        Args:
            logits (`Tensor`): `[B, C]`.
            names (`tuple[str, ...]`): C names.
            frozen (`Tensor`): the frozen CLIP's image features, `[B, d]`.
        """
        known = classifier(self, self.head.adapter, names)
        return logits if known is None else join_classifier(self, self.active_config, known, logits, frozen)

    def shard_class_texts(self, shard: bool = True) -> None:
        """Share the encoding of many class texts among the processes of a data-parallel training.

        Text features are computed from scratch in every training step, by default all of them on every process. With
        this, each of W processes encodes 1/W of them. Loss and gradients stay the same. It takes effect in training
        mode with gradients, from `anprompt_peft.fast.sharding.SHARD_FROM` texts on, and changes nothing where there is
        one process.

        Call it only where all processes train one and the same model, with the same classes and in step, as with
        `DistributedDataParallel`: a process that takes no part makes the others hang.

        Args:
            shard (`bool`): whether to share from now on.
        """
        self.anprompt_state.shards = shard

    def encode_classes(self) -> Tensor:
        """Return the prompted, normalised text features `[C, d]` of the current classes.

        Without gradients they are cached until anything they depend on changes: adapter, weights (in-place updates and
        loading included), classes, dtype, device, autocast, forward hooks. Edits of trained weights through `.data`,
        as of a moving average, are noticed on a CPU at once, and on other devices at the next call of `eval()`.
        """
        return encode_classes(self, plan_classes(self, self.choose()))

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode; cached results end with each `eval()`."""
        self.anprompt_state.evaluations += not mode
        return super().train(mode)

    def choose(self) -> Choice:
        """Return what a call that begins now runs with."""
        return Choice(self.head.adapter, not self.head.disable_adapters, self.anprompt_state.classes)

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
    def head(self) -> ANPromptHead:
        """The module that holds the adapters and knows which one is active."""
        return image_head(self)

    @property
    def active_config(self) -> ANPromptConfig:
        """Configuration of the active adapter, whether adapters are enabled or not; `ValueError` if none is active."""
        return config_of(self, self.head.adapter)

    @property
    def classes(self) -> ClassSet:
        """The current classes: those asked for, else those that the active adapter was trained on."""
        return self.anprompt_state.classes or self.trained_classes

    @property
    def trained_classes(self) -> ClassSet:
        """The classes that the active adapter was trained on; `ValueError` if its weights were not loaded."""
        return trained_classes(self, self.head.adapter)

    def text_embeds(self, classes: ClassSet) -> Tensor:
        """Return the prompted, normalised text features `[C, d]` of classes, computed again."""
        return encode_classes(self, plan_classes(self, self.choose()._replace(classes=classes), cached=False))

    def score_features(
        self, text: Tensor, image: Tensor, prototype: Tensor | None, frozen: Tensor | None = None
    ) -> Scores:
        """Return the logits of normalised images and prototypes `[B, d]`, as [`losses.score`] does."""
        return score(image, prototype, text, logit_scale(self), self.active_config, frozen, logit_bias(self))


_FORWARD = signature(PromptedModel.forward)


def _texts_and_images(input_ids: Tensor | None, pixel_values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return token ids and images, which may stand in the first place."""
    if pixel_values is None and isinstance(input_ids, Tensor) and input_ids.is_floating_point():
        return None, input_ids
    return input_ids, pixel_values


def _checked_labels(labels: Any, plan: Plan, pixel_values: Tensor) -> Tensor | None:
    """Return class numbers as a tensor; of a GPU's only the type is checked, because reading would synchronise."""
    if labels is None:
        return None
    if not plan.with_labels:
        raise ValueError("This plan was made for a call without labels. Make it with model.plan(labels).")
    if isinstance(labels, (list, tuple)):
        with suppress(TypeError, ValueError):  # of names, for example, which are refused below
            labels = torch.tensor(labels, device=pixel_values.device)
    images, count = len(pixel_values), len(plan.classes.names)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (images,):
        got = f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise ValueError(f"labels must be one class number per image, torch.int64 of shape [{images}], got {got}.")
    unread = labels.device.type != "cpu" or not labels.numel() or torch.compiler.is_compiling()
    if not unread and (((labels < 0) & (labels != IGNORED)) | (labels >= count)).any():
        raise ValueError(
            f"labels must lie between 0 and {count - 1} for {count} classes, or be {IGNORED} for images to leave out, "
            f"got {labels.tolist()}."
        )
    return labels
