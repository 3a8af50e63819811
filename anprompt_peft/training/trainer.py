"""`ANPromptTrainer`: transformers' Trainer with the method's recipes, accuracy, and the loss terms in its logs."""

from __future__ import annotations

import inspect
import logging
import math
from collections import defaultdict
from collections.abc import Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from ..data.columns import check_same_classes, label_column
from ..data.images import LABEL
from ..data.transform import without_augmentation
from ..extras import missing
from ..fast.precision import PRECISIONS, choose_precision, restored_precision, set_precision
from ..fast.sharding import refuse_weight_sharding
from ..files import sync, sync_folder
from ..publish.hub import CardCallback
from ..publish.non_finite import NonFiniteError, check_finite
from ..tuner import AdaptedModel, adapted_clip
from .checkpoint import newest_complete, rename_damaged
from .lock import lock_folder
from .metrics import Accuracy
from .recipes import BATCH_SIZE, EPOCHS, LEARNING_RATE, RECIPES
from .seeded import ROW, SeededDataset, SetEpochCallback, draw_as_new

AUTO, BALANCED = "auto", "balanced"

logger = logging.getLogger(__name__)
MOST_PAIRS = 50_000_000
"""Of training images and classes, for a classifier: each takes some 40 bytes while it is fitted."""


@dataclass
class ANPromptTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with a recipe: AdamW at 1e-3, 10 epochs of batches of 4, warm-up, cosine.

    `recipe="paper"` is what the authors' trainers do: weight decay 5e-4 on all weights, no gradient clipping, and one
    epoch at 1e-5 before the cosine, none in a run of one epoch. `recipe="default"` has no weight decay, clips gradient
    norms at 1, and its warm-up takes one epoch or 10 % of the steps, whichever is shorter. With both the learning rate
    changes once per epoch, along a cosine over all epochs.

    For few-shot classification the paper's relatives take 50 epochs of batches of 32, for cross-dataset transfer 1
    epoch of 32.

    Args:
        recipe (`str`): name of one of [`~anprompt_peft.training.recipes.RECIPES`]. Arguments that are given win over
            it.
        weight_decay (`float`, *optional*): the recipe's by default.
        max_grad_norm (`float`, *optional*): the recipe's by default; 0 clips nothing.
        warmup_epochs (`float`, `"auto"` or `None`):
            Epochs at a constant 1e-5 before the cosine, the recipe's by default. `None` leaves the schedule to
            `lr_scheduler_type` and `warmup_steps`, as in any Trainer.
        class_weights (`str`, *optional*):
            `"balanced"` weights both cross entropies by `n / (C * n_c)`, with n training images, n_c of them of class
            c, and C classes.
        precision (`str`, *optional*):
            What CLIP's frozen weights are cast to, once: `"fp32"`, `"bf16"`, or `"auto"` for bf16 where the device
            multiplies it natively, as [`~anprompt_peft.fast.set_precision`] does it. By default they stay as they were
            loaded. It takes the place of `bf16=True`, which casts them in every step.

    Raises:
        ValueError: if `recipe`, `class_weights` or `precision` is unknown, `warmup_epochs` is negative or joined with
            `warmup_steps`, `precision` is joined with `bf16` or `fp16`, or TensorBoard is asked for and not installed.
    """

    learning_rate: float = field(default=LEARNING_RATE, metadata={"help": "The peak learning rate of AdamW."})
    num_train_epochs: float = field(default=float(EPOCHS), metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=BATCH_SIZE, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=100, metadata={"help": "Images per evaluation step and device."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss and its terms."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off, so that transforms set with `with_transform` see the image column."}
    )
    recipe: str = field(
        default="default",
        metadata={
            "help": "Weight decay, clipping and schedule: paper (the authors') or default.",
            "choices": [*RECIPES],
        },
    )
    weight_decay: float | None = field(default=None, metadata={"help": "Of AdamW; default: the recipe's."})
    max_grad_norm: float | None = field(
        default=None, metadata={"help": "Norm to clip gradients to, 0 for no clipping; default: the recipe's."}
    )
    warmup_epochs: float | str | None = field(
        default=AUTO,
        metadata={"help": "Epochs at a constant 1e-5 before the cosine; auto: the recipe's; None: lr_scheduler_type."},
    )
    class_weights: str | None = field(
        default=None, metadata={"help": "balanced: weight the cross entropies by the inverse frequency of classes."}
    )
    precision: str | None = field(
        default=None,
        metadata={
            "help": "Of CLIP's frozen weights; auto: bf16 where the device multiplies it natively, else fp32.",
            "choices": [*PRECISIONS],
        },
    )

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe={self.recipe!r} is unknown. Choose one of: {', '.join(RECIPES)}.")
        if self.class_weights not in (None, BALANCED):
            raise ValueError(f"class_weights={self.class_weights!r} must be {BALANCED!r} or None.")
        recipe = RECIPES[self.recipe]
        if self.weight_decay is None:
            self.weight_decay = recipe.weight_decay
        if self.max_grad_norm is None:
            self.max_grad_norm = recipe.max_grad_norm
        if self.precision is not None and (self.bf16 or self.fp16):
            raise ValueError(
                f"precision={self.precision!r} and bf16 or fp16 exclude each other. Leave one of them out."
            )
        super().__post_init__()
        if self.precision is not None:
            self.precision = choose_precision(self.precision, self.device)
        if "tensorboard" in self.report_to and not is_tensorboard_available():
            raise ValueError(f"report_to='tensorboard': {missing('tensorboard', 'examples')}")
        if self.warmup_epochs is None:
            return
        if self.warmup_epochs != AUTO:
            self.warmup_epochs = _epochs(self.warmup_epochs)
        if self.warmup_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_epochs={self.warmup_epochs} both set the warm-up. Set "
                "warmup_epochs=None to use Trainer's schedules."
            )


class ANPromptTrainer(Trainer):
    """A [`~transformers.Trainer`] that reports accuracy and logs every loss term by name.

    Terms are averaged over the images since the last log, over all processes; those of an evaluation have the prefix
    `eval_`. With [`ANPromptTrainingArguments`] it follows their recipe. What it pushes to the Hub has the
    adapter's card, and random transforms draw by seed, epoch and row, so that a resumed run repeats them (unless
    `remove_unused_columns` is on). A run that is resumed when all its steps are done, or that had stopped early, takes
    no further step. Where the adapter's `classifier_weight` is not 0, its classifier is fitted when training has ended
    and the best weights are loaded, on the training images without [`~anprompt_peft.data.ClipTransform`]'s
    augmentation; checkpoints and evaluations before are without it. The first loss that is NaN or infinite ends the
    training before the weights change, and an adapter with such weights is not saved. Anything else is Trainer's own.

    Raises:
        ValueError: if the arguments ask for class weights and the training data have no column of labels, or a class
            has no image.
        NotImplementedError: under FSDP, DeepSpeed or Megatron-LM.
    """

    lr_scheduler: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_weight_sharding()
        given = inspect.signature(Trainer.__init__).bind_partial(self, *args, **kwargs).arguments
        if given.get("compute_metrics") is None:
            kwargs["compute_metrics"] = Accuracy()
        if arguments := given.get("args"):
            _use_one_gpu(arguments)
        self._is_made = False
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # it would take the labels away: the model's cross entropies do it
        self._is_made = True
        self._set_up(self.model)
        self.add_callback(CardCallback)
        if self.train_dataset is not None and not self.args.remove_unused_columns and _has_rows(self.train_dataset):
            self.train_dataset = SeededDataset(self.train_dataset, self.args.seed)
            self.add_callback(SetEpochCallback(self.train_dataset))
        self._sums: dict[str, dict[str, Tensor]] = {"": {}, "eval_": {}}
        self._images: dict[str, int] = defaultdict(int)
        self._resumed = False

    def _set_up(self, model: Any) -> None:
        """Set precision and loss of a model as the arguments say."""
        if precision := getattr(self.args, "precision", None):
            set_precision(model, precision)
            logger.info("CLIP's frozen weights are in %s.", precision)
        self._set_loss(adapted_clip(model))

    def _set_loss(self, clip: AdaptedModel) -> None:
        if getattr(self.args, "class_weights", None) and self.train_dataset is not None:
            rows = self.train_dataset
            rows = rows.dataset if isinstance(rows, SeededDataset) else rows
            clip.set_class_weights(balanced_class_weights(_labels(rows), clip.class_names))
        elif (weights := clip.class_weights) is not None:
            logger.warning(
                "The cross entropies are weighted by class, as was set before: %s. model.set_class_weights(None) ends "
                "it.",
                weights.tolist(),
            )
        clip.set_label_smoothing(self.args.label_smoothing_factor)

    def call_model_init(self, trial: Any = None) -> Any:
        """Make a model as Trainer does and set it up as the arguments say."""
        model = super().call_model_init(trial)
        if self._is_made:
            self._set_up(model)
        return model

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the method's schedule, or Trainer's if the arguments have no `warmup_epochs`."""
        warmup_epochs = getattr(self.args, "warmup_epochs", None)
        if warmup_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        schedule = RECIPES[self.args.recipe].schedule(
            optimizer or self.optimizer,
            self._steps_per_epoch(),
            num_training_steps,
            None if warmup_epochs == AUTO else warmup_epochs,
        )
        self.lr_scheduler = schedule
        self._created_lr_scheduler = True
        return schedule

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of all weights where the recipe says so, else as Trainer does."""
        recipe = RECIPES.get(getattr(self.args, "recipe", ""))
        if recipe is None or not recipe.decay_biases:
            return super().get_decay_parameter_names(model)
        return [name for name, _ in model.named_parameters()]

    def _steps_per_epoch(self) -> int:
        if not _has_rows(self.train_dataset):
            raise ValueError(
                "warmup_epochs needs training data of known length, and a stream has none. Set warmup_epochs=None and "
                "warmup_steps to a number of steps."
            )
        args = self.args
        images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return math.ceil(len(self.train_dataset) / images)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Train on a batch as Trainer does.

        Raises:
            NonFiniteError: if the loss is NaN or infinite; the message names the step and the images of the batch.
        """
        rows = inputs.pop(ROW, None)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not loss.isfinite():
            images = "unknown" if rows is None else ", ".join(self.train_dataset.names(rows.tolist()))
            raise NonFiniteError(
                f"The loss is {float(loss)} at step {self.state.global_step + 1}, epoch {self.state.epoch or 0:.4g}. "
                f"Images of the batch: {images}. Training stops; checkpoints from before are kept in "
                f"{self.args.output_dir}. Choose a smaller learning rate, or look at these images."
            )
        return loss

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint. `True` is the newest one in the output
                folder that is complete; damaged ones are renamed to `damaged-...` with a warning.
            args: as Trainer's.
            kwargs: as Trainer's.

        Raises:
            FileExistsError: if another training saves to the output folder.
            NonFiniteError: if a loss, or a weight of the adapter at the end, is NaN or infinite.
            OSError: if a file of a checkpoint cannot be read.
            ValueError: with `True`, if there is no checkpoint, or none that is complete.
        """
        adapter = adapted_clip(self.model)
        if self.model_init is None:
            self._set_loss(adapter)  # another Trainer of this model, or set_adapter, may have come in between
        for dataset in (self.train_dataset, *_datasets(self.eval_dataset)):
            check_same_classes(dataset, adapter.class_names)
        if adapter.active_config.classifier_weight:
            adapter.check_classifier()
            if reason := self._why_no_classifier(adapter):
                logger.warning(
                    "%s: no classifier will be fitted at the end. Call model.fit_classifier(batches) with some images "
                    "of each class then, or train with classifier_weight=0.",
                    reason,
                )
            adapter.head.forget_classifier(adapter.head.adapter)  # checkpoints are saved before it is fitted
        folder = Path(self.args.output_dir)
        saves = self.args.should_save and self.args.save_strategy != SaveStrategy.NO
        with lock_folder(folder) if saves else nullcontext():
            if str(resume_from_checkpoint).lower() == "true":
                resume_from_checkpoint = self._newest_checkpoint(folder)
            self._resumed = bool(resume_from_checkpoint)
            if self._resumed and not Path(str(resume_from_checkpoint), OPTIMIZER_NAME).is_file():
                logger.warning(
                    "%s holds no optimizer state, as save_only_model=True leaves it: the optimizer and its schedule "
                    "start again, and the result differs from that of an uninterrupted run.",
                    resume_from_checkpoint,
                )
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        clip = adapted_clip(self.model)
        fits = clip.active_config.classifier_weight and not self._why_no_classifier(clip)
        if fits and not self._is_interrupted():
            logger.info("The classifier is held to the texts with strength %g.", self._fit_classifier(clip))
        if isinstance(self.model, PeftModel):
            check_finite(self.model, self.model.active_adapter)
        return result

    def _why_no_classifier(self, clip: AdaptedModel) -> str | None:
        """Return why the training data are not for a classifier, if they are not."""
        if not _has_rows(self.train_dataset):
            return "A stream of training data may have no end"
        images, classes = len(self.train_dataset), len(clip.active_config.class_names)
        if images * classes > MOST_PAIRS:
            return f"{images} images of {classes} classes make more than {MOST_PAIRS:.0e} pairs"
        return None

    def _is_interrupted(self) -> bool:
        """Whether a callback has received a signal, after which the run is to be resumed."""
        return any(getattr(each, "received", None) for each in self.callback_handler.callbacks)

    def _fit_classifier(self, clip: AdaptedModel) -> float:
        """Fit the classifier on all training images, the same on every process, and return its strength."""
        rows = self.train_dataset
        rows = without_augmentation(rows.dataset if isinstance(rows, SeededDataset) else rows)
        batches: DataLoader[Any] = DataLoader(
            SeededDataset(rows, self.args.seed),  # other random transforms draw as in the first epoch
            self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )
        return clip.fit_classifier(batches, seed=self.args.seed)

    def _newest_checkpoint(self, folder: Path) -> str:
        found, damaged = newest_complete(folder, f"{PREFIX_CHECKPOINT_DIR}-")
        if found is None:
            raise ValueError(
                f"resume_from_checkpoint=True: {folder} holds no checkpoint that can be read"
                f"{', only ' + ', '.join(each.name for each in damaged) if damaged else ''}."
            )
        if self.args.should_save:
            rename_damaged(damaged, found)
        return str(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint, adapter = Path(resume_from_checkpoint), self._trained_adapter()
        named = {path.parent.name for path in checkpoint.glob(f"*/{CONFIG_NAME}")}
        others = named - {adapter}
        if others and not self._saved(checkpoint).is_file():
            raise ValueError(
                f"{checkpoint} holds the adapters {sorted(others)}, and {adapter!r} is to be trained. Resume with one "
                "of them: get_peft_model(clip, config, adapter_name=...)."
            )
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_trained(checkpoint)

    def _load_best_model(self) -> None:
        """Load the trained adapter's weights of the best checkpoint."""
        checkpoint = Path(self.state.best_model_checkpoint)
        if not self._saved(checkpoint).is_file():
            logger.warning(
                "%s is not there, so the model keeps its last weights, not the best ones. On several machines without "
                "a common disk set save_on_each_node=True.",
                self._saved(checkpoint),
            )
            return
        logger.info("Loading the best weights, from %s (score: %s).", checkpoint, self.state.best_metric)
        self._load_trained(checkpoint)

    def _load_trained(self, checkpoint: Path) -> None:
        folder, adapter = str(self._saved(checkpoint).parent), self._trained_adapter()
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(folder, adapter)
            return
        weights = load_peft_weights(folder, device="cpu")
        weights = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
        set_peft_model_state_dict(self.model, weights, adapter_name=adapter)

    def _saved(self, checkpoint: Path) -> Path:
        """Return the trained adapter's weights file: PEFT saves each but `default` in a folder of its name."""
        adapter = self._trained_adapter()
        top = adapter == "default" or not isinstance(self.model, PeftModel)
        return (checkpoint if top else checkpoint / adapter) / SAFETENSORS_WEIGHTS_NAME

    def _trained_adapter(self) -> str:
        return adapted_clip(self.model).head.active_adapters[0]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a step: none if the resumed checkpoint was a run's last."""
        if self._resumed and self._is_over():
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _is_over(self) -> bool:
        callbacks = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        stopped = any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in callbacks)
        return stopped or self.state.global_step >= self.state.max_steps

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            run = Path(self._get_output_dir(trial=trial))
            sync(run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            sync_folder(run)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the loss as Trainer does and remember the loss terms, without waiting for the device.

        Raises:
            ValueError: in training, if the batch has no labels.
        """
        if model.training and not {"labels", "input_ids"} & inputs.keys():
            raise ValueError(
                f"The batches that are trained on have no labels, only {', '.join(inputs)}. Call the column of class "
                "numbers label or labels. Names of classes, which are left out of batches, become numbers with "
                "dataset.class_encode_column(column)."
            )
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        phase, images = "" if model.training else "eval_", len(outputs["logits"])
        sums = self._sums[phase]
        for name, term in (outputs.get("loss_terms") or {}).items():
            sums[name] = sums.get(name, 0) + images * term.mean()
        self._images[phase] += images
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict as Trainer does; `fp16_full_eval` and `bf16_full_eval` end with it.

        Raises:
            ValueError: if the data number the model's classes otherwise.
        """
        check_same_classes(dataloader.dataset, adapted_clip(self.model).class_names)
        draw_as_new(dataloader)
        casts = (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_in_train
        with restored_precision(self.model) if casts else nullcontext():
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss terms of this phase to what is logged."""
        phase = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        if sums := self._sums[phase]:
            local = torch.stack([*sums.values(), torch.full_like(next(iter(sums.values())), self._images[phase])])
            *totals, images = self.accelerator.reduce(local, "sum").tolist()
            logs.update({phase + name: total / images for name, total in zip(sums, totals, strict=True)})
        self._sums[phase], self._images[phase] = {}, 0
        super().log(logs, *args, **kwargs)


def _epochs(value: float | str) -> float:
    try:
        epochs = float(value)
    except ValueError:
        epochs = math.nan
    if not 0 <= epochs < math.inf:
        raise ValueError(f"warmup_epochs={value} must be a number of at least 0, {AUTO!r}, or None.")
    return epochs


def _labels(dataset: Any) -> list[int]:
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return [labels[row] for row in dataset.indices]
    columns = [name for name in (LABEL, "labels") if name in (getattr(dataset, "column_names", None) or ())]
    if not columns or not _has_rows(dataset):
        raise ValueError(
            "class_weights needs training data of type datasets.Dataset with a column 'label' or 'labels', not "
            f"{type(dataset).__name__}. For others call model.set_class_weights(weights)."
        )
    return label_column(dataset, columns[0])


def balanced_class_weights(labels: Sequence[int], class_names: Sequence[str]) -> Tensor:
    """Return `n / (C * n_c)` for each of C classes, float32 `[C]`.

    Args:
        labels (sequence of `int`): the classes of n images, as positions in the class names.
        class_names (sequence of `str`): C names.

    Raises:
        ValueError: if a class has no image, or a label no class.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=len(class_names))
    if len(counts) > len(class_names):
        raise ValueError(f"labels go up to {len(counts) - 1}, but there are {len(class_names)} classes.")
    if absent := [name for name, count in zip(class_names, counts.tolist(), strict=True) if not count]:
        raise ValueError(f"class_weights={BALANCED!r} needs an image of every class. There is none of: {absent}.")
    return len(labels) / (len(class_names) * counts)


def _has_rows(dataset: Any) -> bool:
    return isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def _use_one_gpu(arguments: TrainingArguments) -> None:
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible and one is used: an adapter does not work in torch.nn.DataParallel. For several "
            "start the script with accelerate launch or torchrun.",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def _datasets(given: Any) -> list[Any]:
    return list(given.values()) if isinstance(given, dict) else [given]
