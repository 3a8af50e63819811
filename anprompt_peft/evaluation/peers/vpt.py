"""VPT-deep on CLIP: learnable tokens in the vision encoder (Jia et al., 2022, arXiv 2203.12119)."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import FittedPrompts, PromptableCLIP, deep_prompts, fit_prompts
from .prompted import depth_in
from .training import Recipe

PUBLISHED_DEPTH = 12


@dataclass(frozen=True)
class VPT:
    """n learnable tokens behind the patches, new ones in every layer of the vision encoder; frozen class texts.

    The class texts are the task's own templates. Later layers' tokens take the place of what those before became.

    Args:
        recipe (`Recipe`): how it is trained.
        tokens (`int`): n.
        depth (`int`, *optional*): layers with tokens, from the first. Default: 12, or all of a smaller encoder.
    """

    recipe: Recipe
    tokens: int
    depth: int | None = None

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens."""
        clip = PromptableCLIP(backbone)
        depth = depth_in(clip.vision_layers, self.depth, PUBLISHED_DEPTH)
        learner = deep_prompts(clip, text_depth=0, vision_depth=depth, vision_tokens=self.tokens, seed=seed)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)
