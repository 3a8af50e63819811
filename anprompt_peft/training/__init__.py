"""Training with `Trainer`, and what a training loop of one's own needs."""

from ..fast.sharding import refuse_weight_sharding
from ..publish.finite import NonFiniteError, check_finite
from .checkpoint import clear, keep_adapter_only, newest, save_newest
from .lock import alone_in
from .metrics import Accuracy, accuracy
from .recipes import BATCH_SIZE, EPOCHS, LEARNING_RATE, RECIPES, Recipe, warmup_cosine
from .repeatable import RepeatableRows, TellEpoch
from .trainer import ANPromptTrainer, ANPromptTrainingArguments, balanced_class_weights

__all__ = [
    "BATCH_SIZE",
    "EPOCHS",
    "LEARNING_RATE",
    "RECIPES",
    "ANPromptTrainer",
    "ANPromptTrainingArguments",
    "Accuracy",
    "NonFiniteError",
    "Recipe",
    "RepeatableRows",
    "TellEpoch",
    "accuracy",
    "alone_in",
    "balanced_class_weights",
    "check_finite",
    "clear",
    "keep_adapter_only",
    "newest",
    "refuse_weight_sharding",
    "save_newest",
    "warmup_cosine",
]
