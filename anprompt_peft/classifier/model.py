"""A saved classifier as a model of transformers: its auto classes and the pipeline `image-classification` take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..method.class_texts import check_class_names, check_template
from ..method.families import family_of
from .config import LORA, MODEL_TYPE, CLIPClassifierConfig


class CLIPClassifier(PreTrainedModel):
    """A method after it has learned, on the CLIP that it learned on; for inference.

    `from_pretrained` loads what [`save_classifier`][anprompt_peft.classifier.save_classifier] wrote, checked as
    [`load_classifier`][anprompt_peft.classifier.load_classifier] does.

    Args:
        config (`CLIPClassifierConfig`): which method classifies which classes.
        clip (`PreTrainedModel`): the frozen CLIP, with LoRA merged in if that is the method.
        processor (`ProcessorMixin`): the CLIP's.
        tensors (`Mapping[str, Tensor]`): of the method.
    """

    config_class = CLIPClassifierConfig
    main_input_name = "pixel_values"

    def __init__(
        self, config: CLIPClassifierConfig, clip: PreTrainedModel, processor: Any, tensors: Mapping[str, Tensor]
    ) -> None:
        super().__init__(config)
        self.processor = processor
        self.clip = clip
        self._names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(f"method_{name}", tensor)
        self.set_classes()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> CLIPClassifier:
        """Load a classifier from a folder; `dtype` is that of the CLIP."""
        from .loading import load_classifier

        model = load_classifier(name)
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype):
            model.clip.to(dtype)
        return model

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that compete."""
        return tuple(self.classes.names)

    def set_classes(self, class_names: Sequence[str] | None = None, template: Any = None) -> None:
        """Classify among other classes; those that the method was not made for are zero-shot CLIP's.

        Args:
            class_names (`Sequence[str]`, *optional*): by default those that it was made for.
            template (`str` or `Sequence[str]`, *optional*): with `{}` for the name, by default its own.

        Raises:
            ValueError: for fewer than two classes, or a template without `{}`.
        """
        from ..evaluation.task import ClassTexts

        templates = (
            self.config.templates if template is None else [template] if isinstance(template, str) else template
        )
        names = check_class_names(self.config.class_names if class_names is None else class_names)
        check_template(list(templates))
        self.classes = ClassTexts(tuple(names), tuple(templates))
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: at for at, name in enumerate(names)}

    @property
    def fitted(self) -> Any:
        """The method as `anprompt_peft.evaluation` measures it."""
        from .kinds import KINDS

        tensors = {name: getattr(self, f"method_{name}") for name in self._names}
        return KINDS[self.config.method].build(self.backbone, self.config, tensors)

    @property
    def backbone(self) -> Any:
        """The CLIP with its cached features."""
        from ..evaluation.backbone import Backbone

        if self._backbone is None:
            self._backbone = Backbone(self.clip, self.processor)
        return self._backbone

    @property
    def frozen(self) -> Any:
        """The same for the CLIP without the method: of LoRA, which is merged in, the CLIP is loaded again."""
        if self.config.method != LORA:
            return self.backbone
        from ..evaluation.backbone import Backbone

        own = family_of(self.clip).model
        clip = own.from_pretrained(self.clip.name_or_path, revision=self.config.base_model_revision)
        return Backbone(clip.to(self.device, self.clip.dtype), self.processor)

    _backbone: Any = None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Forget cached features when the model moves."""
        self._backbone = None
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, classes: Any = None, **_: Any) -> ImageClassifierOutput:
        """Return the logits `[B, C]` of pixel values `[B, 3, H, W]`, for `classes` in place of the model's own."""
        logits = self.fitted.logits(_Pixels(pixel_values), classes or self.classes)
        return ImageClassifierOutput(logits=logits.to(pixel_values.device))


class _Pixels:
    """A batch in the place of an image set."""

    within = None

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def batches(self) -> Iterator[Tensor]:
        """Yield the batch."""
        yield self.pixels


def register() -> None:
    """Let transformers' auto classes load saved classifiers."""
    AutoConfig.register(MODEL_TYPE, CLIPClassifierConfig, exist_ok=True)
    AutoModelForImageClassification.register(CLIPClassifierConfig, CLIPClassifier, exist_ok=True)
