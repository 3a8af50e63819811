"""Prompts that are learned for one encoder or for both, independently: CoOp, VPT and IVLP."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import FittedPrompts, PromptableCLIP, deep_prompts, fit_prompts, prompts_of_both
from .prompted import TEXT_CHUNK, WORDS, Context, depth_in
from .training import Recipe

PUBLISHED_DEPTH = 12


@dataclass(frozen=True)
class CoOp:
    """M learnable word vectors, the same for all classes, followed by the class name and a full stop.

    With text features t_i of `[v_1] ... [v_M] {name}.` and image features x, both normalised, the logits are
    `exp(logit_scale) x t^T` and the loss is their cross entropy (Zhou et al., 2022a, arXiv 2109.01134). The learned
    context stands in the place of the task's templates. Without augmentation the images are encoded once.
    """

    recipe: Recipe
    tokens: int | None = None  # M; default: as many as the words have
    words: str = WORDS  # where the vectors start; empty: at random
    text_chunk: int = TEXT_CHUNK  # class texts encoded at a time; more are each computed twice, to save memory

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the context."""
        clip = PromptableCLIP(backbone, Context(self.words, self.tokens), self.text_chunk)
        learner = deep_prompts(clip, text_depth=1, vision_depth=0, vision_tokens=0, seed=seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)


@dataclass(frozen=True)
class VPT:
    """n learnable tokens behind the patches, new ones in every layer of the vision encoder; frozen class texts.

    VPT-deep on CLIP (Jia et al., 2022, arXiv 2203.12119). The class texts are the task's own templates. Later layers'
    tokens take the place of what those before became.
    """

    recipe: Recipe
    tokens: int  # n
    depth: int | None = None  # layers with tokens, from the first; default: 12, or all of a smaller encoder

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens."""
        clip = PromptableCLIP(backbone)
        depth = depth_in(clip.vision_layers, self.depth, PUBLISHED_DEPTH)
        learner = deep_prompts(clip, text_depth=0, vision_depth=depth, vision_tokens=self.tokens, seed=seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)


@dataclass(frozen=True)
class IVLP:
    """Learnable tokens behind the start token of `{words} {name}.` and behind the patches, new ones in every layer.

    Independent prompts in both encoders (Rasheed et al., 2023, arXiv 2212.03640; baseline of MaPLe). In the first
    layer of the text encoder they take the place of the first words, so that "a photo of a" with two tokens is read as
    `[p_1] [p_2] of a {name}.`; the task's templates are not used.
    """

    recipe: Recipe
    vision_tokens: int
    text_tokens: int | None = None  # default: as many as the words have
    words: str = WORDS  # where the first text tokens start; empty: at random
    depth: int | None = None  # layers of both encoders with tokens; default: 12, or all of a smaller encoder
    text_chunk: int = TEXT_CHUNK  # class texts encoded at a time, as in CoOp

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens."""
        clip = PromptableCLIP(backbone, Context(self.words, self.text_tokens), self.text_chunk)
        learner = prompts_of_both(clip, self.depth, PUBLISHED_DEPTH, self.vision_tokens, seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)
