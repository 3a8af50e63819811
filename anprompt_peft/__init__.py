"""ANPrompt (arXiv 2508.04677) for stock Hugging Face PEFT. Importing the package registers the method."""

from .classifier.model import register as register_classifiers
from .clip import ANPromptOutput
from .method.config import ANPromptConfig
from .method.registration import register
from .publish import Metric, TrainingFacts
from .publish.mixin import patch_saving
from .trust.loading import patch_loading
from .tuner import AdaptedModel, ANPromptCLIPModel, ANPromptModel, patch_models

__version__ = "0.1.0"

__all__ = [
    "ANPromptCLIPModel",
    "ANPromptConfig",
    "ANPromptModel",
    "ANPromptOutput",
    "AdaptedModel",
    "Metric",
    "TrainingFacts",
    "__version__",
]

register(ANPromptConfig, ANPromptModel)
patch_saving(ANPromptModel)
patch_loading()
patch_models()
register_classifiers()
