"""Training with `Trainer`, and what a custom training loop needs."""

from ..fast.sharding import refuse_weight_sharding
from ..publish.non_finite import NonFiniteError, check_finite
from .checkpoint import clear, keep_adapter_only, newest, save_newest
from .folds import FOLDS, ShareChoice
from .frozen_share import choose_frozen_share
from .lock import lock_folder
from .metrics import Accuracy, accuracy
from .recipes import BATCH_SIZE, EPOCHS, LEARNING_RATE, RECIPES, Recipe, warmup_cosine
from .seeded import SeededDataset, SetEpochCallback
from .trainer import ANPromptTrainer, ANPromptTrainingArguments, balanced_class_weights

RepeatableRows, TellEpoch, alone_in = SeededDataset, SetEpochCallback, lock_folder
"""Former names."""

__all__ = [
    "BATCH_SIZE",
    "EPOCHS",
    "FOLDS",
    "LEARNING_RATE",
    "RECIPES",
    "ANPromptTrainer",
    "ANPromptTrainingArguments",
    "Accuracy",
    "NonFiniteError",
    "Recipe",
    "RepeatableRows",
    "SeededDataset",
    "SetEpochCallback",
    "ShareChoice",
    "TellEpoch",
    "accuracy",
    "alone_in",
    "balanced_class_weights",
    "check_finite",
    "choose_frozen_share",
    "clear",
    "keep_adapter_only",
    "lock_folder",
    "newest",
    "refuse_weight_sharding",
    "save_newest",
    "warmup_cosine",
]
