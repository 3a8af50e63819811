"""ANPrompt (arXiv 2508.04677) for stock Hugging Face PEFT. Importing the package registers the method."""

from .clip import ANPromptCLIPModel, ANPromptOutput
from .config import ANPromptConfig
from .model import ANPromptModel
from .registration import register

__version__ = "0.1.0"

__all__ = ["ANPromptCLIPModel", "ANPromptConfig", "ANPromptModel", "ANPromptOutput", "__version__"]

register(ANPromptConfig, ANPromptModel)
