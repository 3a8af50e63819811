"""`ANPromptCLIPModel`: the class that an adapted `CLIPModel` takes on, with a forward over classes and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.utils import ModelOutput

from .classes import ClassSet, class_texts, load_tokenizer, tokenize, trim
from .config import ANPromptConfig, check_class_names, check_template
from .features import at_least_float32, ensemble, full_precision, text_targets
from .layer import ANPromptHead, PromptContext
from .losses import clip_logits, similarity_loss, total_loss, waloss
from .noise import normalize


@dataclass
class ANPromptOutput(ModelOutput):
    """What [`ANPromptCLIPModel`] returns for a batch of B images and C classes.

    All logits and losses are float32, or float64 for a float64 model.

    Attributes:
        loss (`Tensor`, *optional*): scalar, the weighted sum of the loss terms; only with labels.
        logits (`Tensor`): `[B, C]`, the logits to use: fused while training, else what `inference_logits` says.
        logits_class (`Tensor`): `[B, C]`, images against prompted class texts.
        logits_prototype (`Tensor`, *optional*): `[B, C]`, prototypes (NRVPP) against prompted class texts.
        logits_fused (`Tensor`): `[B, C]`, `alpha * logits_class + (1 - alpha) * logits_prototype`.
        image_embeds (`Tensor`): `[B, d]`, normalised.
        prototype_embeds (`Tensor`, *optional*): `[B, d]`, normalised.
        loss_terms (`dict[str, Tensor]`, *optional*): the detached, unweighted scalar terms by name; only with labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_class: Tensor | None = None
    logits_prototype: Tensor | None = None
    logits_fused: Tensor | None = None
    image_embeds: Tensor | None = None
    prototype_embeds: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None


class ANPromptCLIPModel(CLIPModel):
    """A `CLIPModel` with ANPrompt adapters. Injection turns a `CLIPModel` into one in place; `unload()` turns it back.

    It is never built directly: it adds no weights of its own, and everything of `CLIPModel` works as before, with the
    prompts of the active adapter in.
    """

    accepts_loss_kwargs = False
    """Tells `Trainer` that the loss is a mean over the batch, to be divided by the accumulation steps."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify images, or score image-text pairs as `CLIPModel` does.

        Args:
            input_ids (`Tensor`, *optional*): int64 `[n, L]`. If given, this is `CLIPModel.forward`.
            pixel_values (`Tensor`): `[B, 3, H, W]`.
            attention_mask (`Tensor`, *optional*): `[n, L]`, with `input_ids` only.
            position_ids (`Tensor`, *optional*): `[n, L]`, with `input_ids` only.
            return_loss (`bool`, *optional*): CLIP's contrastive loss, with `input_ids` only.
            interpolate_pos_encoding (`bool`): allow other image sizes.
            labels (`Tensor`, *optional*): int64 `[B]`, positions in the class names; with them come the losses.
            kwargs: further arguments of transformers' CLIP encoders.

        Returns:
            [`ANPromptOutput`], or transformers' `CLIPOutput` when `input_ids` is given.

        Raises:
            ValueError: if `pixel_values` is missing, `labels` come with `input_ids` or lie outside the classes, or no
                adapter is active.
        """
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
            )
        if pixel_values is None:
            raise ValueError("Give pixel_values to classify images, or pixel_values and input_ids as for CLIPModel.")
        return_dict = kwargs.pop("return_dict", True)
        classes, text = self._classes_and_cached_text()
        if text is None:
            text = self._text_embeds(classes)
        images = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding, **kwargs}
        if labels is not None:
            _check_labels(labels, classes)
        output = self._classify(classes, text, images, labels)
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
            ValueError: for invalid names or templates, or texts longer than CLIP's context.
        """
        if class_names is None:
            self._asked_classes = None
            return
        config = self._active_config()
        check_class_names(class_names)
        templates = config.templates if template is None else [template] if isinstance(template, str) else template
        check_template(templates)
        tokenizer = load_tokenizer(tokenizer or config.tokenizer, config.tokenizer_name_or_path)
        input_ids = tokenize(class_texts(class_names, templates), tokenizer, self.config)
        self._asked_classes = ClassSet(tuple(class_names), tuple(templates), input_ids.to(self.device))
        self._asked_tokenizer = tokenizer

    def encode_classes(self) -> Tensor:
        """Return the prompted, normalised text features `[C, d]` of the current classes.

        Without gradients they are kept until anything they depend on changes: adapter, weights (in-place updates and
        loading included), classes, dtype, device, autocast. Edits through `.data` go unnoticed.
        """
        classes, text = self._classes_and_cached_text()
        return self._text_embeds(classes) if text is None else text

    @property
    def class_names(self) -> list[str]:
        """Names of the current classes, in the order of the logits."""
        return list(self._classes().names)

    @property
    def _head(self) -> ANPromptHead:
        return self.visual_projection

    def _active_config(self) -> ANPromptConfig:
        adapter = self._head.adapter
        if adapter is None or adapter not in self._head.configs:
            raise ValueError("No ANPrompt adapter is active. Choose one with set_adapter(name).")
        return self._head.configs[adapter]

    def _classes(self) -> ClassSet:
        asked = self.__dict__.get("_asked_classes")
        return self._trained_classes() if asked is None else asked

    def _trained_classes(self) -> ClassSet:
        config, head, adapter = self._active_config(), self._head, self._head.adapter
        ids = head.anprompt_class_ids[adapter]
        buffers = (ids, head.anprompt_clean_features[adapter], head.anprompt_perturbed_features[adapter])
        key = _versions(buffers)
        if self.__dict__.get("_trained_key") != key:
            if int(ids.min()) < 0:
                raise ValueError(
                    f"The noise prompts of adapter {adapter!r} were neither computed nor loaded. Create the adapter "
                    "with init_noise_prompts=True, or load its weights."
                )
            names, templates = tuple(config.class_names), tuple(config.templates)
            self._trained_set = ClassSet(names, templates, trim(ids, self.config), *buffers[1:])
            self._trained_key = key
        return self._trained_set

    @torch.compiler.disable
    def _classes_and_cached_text(self) -> tuple[ClassSet, Tensor | None]:
        classes = self._classes()
        weights = [*self.text_model.parameters(), *self.text_projection.parameters(), *self._head.parameters()]
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return classes, None
        key = (
            id(classes),
            self._head.adapter,
            self._head.disable_adapters,
            torch.is_inference_mode_enabled(),
            *_autocast_state(self.device.type),
            *_versions(weights),
            *_versions(list(self._head.anprompt_noise_prompts.values())),
        )
        if self.__dict__.get("_text_key") != key:
            self._text_cache = self._text_embeds(classes)
            self._text_key, self._text_classes = key, classes
        return classes, self._text_cache

    def _text_embeds(self, classes: ClassSet) -> Tensor:
        features = self.get_text_features(input_ids=classes.input_ids.to(self.device)).pooler_output
        with full_precision(features):
            return ensemble(normalize(at_least_float32(features)), len(classes.templates))

    def _classify(
        self, classes: ClassSet, text: Tensor, images: dict[str, Any], labels: Tensor | None
    ) -> ANPromptOutput:
        config, context = self._active_config(), PromptContext()
        features = self.get_image_features(prompt_context=context, **images).pooler_output
        prototype = logits_prototype = None
        with full_precision(features):
            image = normalize(at_least_float32(features))
            scale = at_least_float32(self.logit_scale).exp()
            logits_class = logits_fused = clip_logits(image, text, scale)
            if context.vision_prompts is not None:
                prompts = self.vision_model.post_layernorm(context.vision_prompts)
                prototype = normalize(at_least_float32(self._head.prototype(prompts)))
                logits_prototype = clip_logits(prototype, text, scale)
                logits_fused = config.alpha * logits_class + (1 - config.alpha) * logits_prototype
        terms: dict[str, Tensor] = {}
        if labels is not None:
            terms["cross_entropy_class"] = F.cross_entropy(logits_class, labels)
            if logits_prototype is not None:
                terms["cross_entropy_prototype"] = F.cross_entropy(logits_prototype, labels)
            if not self._head.disable_adapters:
                terms |= self._consistency_terms(classes, images, image, text, prototype, logits_class)
        output = ANPromptOutput(
            loss=total_loss(terms, config) if terms else None,
            logits=logits_class,
            logits_class=logits_class,
            logits_prototype=logits_prototype,
            logits_fused=logits_fused,
            image_embeds=image,
            prototype_embeds=prototype,
            loss_terms={name: term.detach() for name, term in terms.items()} or None,
        )
        output.logits = output[self._chosen_logits(config, classes, prototype)]
        return output

    def _chosen_logits(self, config: ANPromptConfig, classes: ClassSet, prototype: Tensor | None) -> str:
        choice = config.inference_logits
        if self.training or prototype is None:
            choice = "fused"
        elif choice == "auto":
            choice = "fused" if set(classes.names) <= set(config.class_names) else "class"
        return f"logits_{choice}"

    def _consistency_terms(
        self,
        classes: ClassSet,
        images: dict[str, Any],
        image: Tensor,
        text: Tensor,
        prototype: Tensor | None,
        logits_class: Tensor,
    ) -> dict[str, Tensor]:
        clean, perturbed = self._text_targets(classes)
        with torch.no_grad():
            frozen = self.get_image_features(prompt_context=PromptContext(enabled=False), **images).pooler_output
        with full_precision(image):
            terms = {
                "similarity_image": similarity_loss(image, normalize(at_least_float32(frozen))),
                "similarity_text": similarity_loss(text, clean.to(text)),
            }
            if prototype is not None:
                scale = at_least_float32(self.logit_scale).exp()
                terms["waloss"] = waloss(logits_class, clip_logits(prototype, perturbed.to(text), scale))
        return terms

    def _text_targets(self, classes: ClassSet) -> tuple[Tensor, Tensor]:
        if classes.clean is None or classes.perturbed is None:
            config = self._active_config()
            classes.clean, classes.perturbed, _ = text_targets(self, classes, config, self._asked_tokenizer)
        return classes.clean, classes.perturbed


def _autocast_state(device_type: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


def _versions(tensors: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(
        (id(each), each.data_ptr(), each.dtype, each.device, -1 if each.is_inference() else each._version)
        for each in tensors
    )


def _check_labels(labels: Tensor, classes: ClassSet) -> None:
    """Raise on labels outside the classes; labels on an accelerator are left to its own check, to avoid a wait."""
    count = len(classes.names)
    if labels.device.type != "cpu" or labels.dim() != 1 or not labels.numel():
        return
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"labels must lie between 0 and {count - 1} for {count} classes, got {labels.tolist()}.")
