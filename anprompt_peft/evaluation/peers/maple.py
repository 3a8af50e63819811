"""MaPLe: text prompts that vision prompts follow from (Khattak et al., 2023a, arXiv 2210.03117)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import FittedPrompts, PromptableCLIP, fit_prompts
from .prompted import TEXT_CHUNK, WORDS, Context, Prompts, depth_in, random_prompts
from .training import Recipe, seeded

PUBLISHED_DEPTH = 9


class CoupledPrompts(nn.Module):
    """Text prompts P_k `[n, d_t]` of the layers, and the vision prompts `P_k W_k^T + b_k` `[n, d_v]`.

    The couplings start as `nn.Linear` does, those of all layers but the first with the same values; P_1 starts at
    `first`, the others from N(0, 0.02).
    """

    def __init__(self, first: Tensor, depth: int, width: int, like: Tensor) -> None:
        super().__init__()
        count, text_width = first.shape
        starts = [first, *(random_prompts(count, text_width) for _ in range(depth - 1))]
        self.text = nn.ParameterList([nn.Parameter(each.to(like)) for each in starts])
        self.couplings = nn.ModuleList([nn.Linear(text_width, width) for _ in range(depth)])
        with torch.no_grad():
            for later in self.couplings[2:]:
                later.load_state_dict(self.couplings[1].state_dict())
        self.to(like)

    def forward(self) -> Prompts:
        """Return the prompts of both encoders."""
        vision = [couple(text) for couple, text in zip(self.couplings, self.text, strict=True)]
        return Prompts(tuple(self.text), tuple(vision))


@dataclass(frozen=True)
class MaPLe:
    """Learnable tokens in the first layers of both encoders, those of vision a linear map of those of text.

    In the first layer of the text encoder they take the place of the first words, so that "a photo of a" with two
    tokens is read as `[p_1] [p_2] of a {name}.`; the task's templates are not used. The loss is cross entropy.
    """

    recipe: Recipe
    tokens: int | None = None  # of each encoder; default: as many as the words have
    words: str = WORDS  # where the first text tokens start; empty: at random
    depth: int | None = None  # layers with tokens, from the first; default: 9, or all of the smaller encoder
    text_chunk: int = TEXT_CHUNK  # class texts encoded at a time, as in CoOp

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens and the couplings."""
        context = Context(self.words, self.tokens)
        clip = PromptableCLIP(backbone, context, self.text_chunk)
        depth = depth_in(min(clip.text_layers, clip.vision_layers, key=len), self.depth, PUBLISHED_DEPTH)
        with seeded(seed):
            first = context.initial(clip.tokenizer, clip.model)
            learner = CoupledPrompts(first, depth, clip.widths[1], clip.like)
        return fit_prompts(clip, learner, shots, classes, self.recipe, seed)
