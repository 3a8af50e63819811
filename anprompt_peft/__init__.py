"""ANPrompt (arXiv 2508.04677) for stock Hugging Face PEFT. Importing the package registers the method."""

from .clip import ANPromptCLIPModel, ANPromptOutput
from .config import ANPromptConfig
from .facts import Metric, TrainingFacts
from .hub import hand_over
from .model import ANPromptModel
from .registration import register

__version__ = "0.1.0"

__all__ = [
    "ANPromptCLIPModel",
    "ANPromptConfig",
    "ANPromptModel",
    "ANPromptOutput",
    "Metric",
    "TrainingFacts",
    "__version__",
]

register(ANPromptConfig, ANPromptModel)
hand_over(ANPromptModel)
