"""ANPrompt (arXiv 2508.04677) for stock Hugging Face PEFT. Importing the package registers the method."""

from .clip import ANPromptOutput
from .method.config import ANPromptConfig
from .method.registration import register
from .publish import Metric, TrainingFacts
from .publish.mixin import hand_over
from .trust.doors import guard
from .tuner import ANPromptCLIPModel, ANPromptModel, give_input_embeddings, join_pipelines

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
guard()
give_input_embeddings()
join_pipelines()
