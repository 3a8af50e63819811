"""IVLP: independent prompts in both encoders (Rasheed et al., 2023, arXiv 2212.03640; baseline of MaPLe)."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import FittedPrompts, PromptableCLIP, fit_prompts, prompts_of_both
from .prompted import TEXT_CHUNK, WORDS, Context
from .training import Recipe

PUBLISHED_DEPTH = 12


@dataclass(frozen=True)
class IVLP:
    """Learnable tokens behind the start token of `{words} {name}.` and behind the patches, new ones in every layer.

    In the first layer of the text encoder they take the place of the first words, so that "a photo of a" with two
    tokens is read as `[p_1] [p_2] of a {name}.`; the task's templates are not used.

    Args:
        recipe (`Recipe`): how it is trained.
        vision_tokens (`int`): tokens of the vision encoder.
        text_tokens (`int`, *optional*): tokens of the text encoder. Default: as many as the words have.
        words (`str`): where the first text tokens start; empty: at random.
        depth (`int`, *optional*): layers with tokens, from the first, of both encoders. Default: 12, or all of a
            smaller encoder.
        text_chunk (`int`): class texts encoded at a time, as in CoOp.
    """

    recipe: Recipe
    vision_tokens: int
    text_tokens: int | None = None
    words: str = WORDS
    depth: int | None = None
    text_chunk: int = TEXT_CHUNK

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens."""
        clip = PromptableCLIP(backbone, Context(self.words, self.text_tokens), self.text_chunk)
        learner = prompts_of_both(clip, self.depth, PUBLISHED_DEPTH, self.vision_tokens, seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)
