"""CoOp: a learnable context in front of the class names (Zhou et al., 2022a, arXiv 2109.01134)."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import FittedPrompts, PromptableCLIP, deep_prompts, fit_prompts
from .prompted import TEXT_CHUNK, WORDS, Context
from .training import Recipe


@dataclass(frozen=True)
class CoOp:
    """M learnable word vectors, the same for all classes, followed by the class name and a full stop.

    With text features t_i of `[v_1] ... [v_M] {name}.` and image features x, both normalised, the logits are
    `exp(logit_scale) x t^T` and the loss is their cross entropy. The learned context stands in the place of the task's
    templates. Without augmentation the images are encoded once.

    Args:
        recipe (`Recipe`): how it is trained.
        tokens (`int`, *optional*): M. Default: as many as the words have.
        words (`str`): where the vectors start; empty: at random.
        text_chunk (`int`): class texts encoded at a time. If there are more, each is computed twice, to save memory.
    """

    recipe: Recipe
    tokens: int | None = None
    words: str = WORDS
    text_chunk: int = TEXT_CHUNK

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the context."""
        clip = PromptableCLIP(backbone, Context(self.words, self.tokens), self.text_chunk)
        learner = deep_prompts(clip, text_depth=1, vision_depth=0, vision_tokens=0, seed=seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)
