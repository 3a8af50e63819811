"""`Savings`: which work a step leaves out. None of them changes a result."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Savings:
    """Work that a step leaves out; each can be switched off to see what it is worth.

    Attributes:
        text_end (`bool`): texts end at the longest end-of-text token instead of the context's end.
        text_prefix (`bool`): the frozen text layers before the first prompt run once per class list.
        vision_prefix (`bool`): the frozen vision layers before the first prompt, and the next layer's queries, keys
            and values of image positions, serve the prompted and the frozen branch.
        last_layer (`bool`): in the last layers only the positions that are read ask and go through the MLP; those of
            images ask without keys and values being formed.
        prompt_keys (`bool`): prompts that the next layer replaces give keys and values, and nothing else is computed
            of them. Has no effect on vision layers with `prompt_mixing` below 1.
        text_opening (`bool`): what all class texts begin with, prompts included, is computed once. On CPUs only:
            elsewhere it takes longer to launch the many small operations than to compute a few large ones.
        ragged_text (`bool`): linear layers run on the tokens of texts without padding, and attention pads none to more
            than twice its length; goes with `text_opening`.
        activation (`bool`): QuickGELU takes one operation, its scalings being done by the products around it, and
            keeps one tensor for the backward pass instead of two.
        text_chunk (`int`, *optional*): computes that many texts at a time and again in the backward pass, to bound
            the memory of many classes.
    """

    text_end: bool = True
    text_prefix: bool = True
    vision_prefix: bool = True
    last_layer: bool = True
    prompt_keys: bool = True
    text_opening: bool = True
    ragged_text: bool = True
    activation: bool = True
    text_chunk: int | None = None

    def __post_init__(self) -> None:
        if self.text_chunk is not None and (not isinstance(self.text_chunk, int) or self.text_chunk < 1):
            raise ValueError(f"text_chunk={self.text_chunk!r} must be a number of texts, at least 1, or None.")

    @classmethod
    def none(cls) -> Savings:
        """Return the plain path: CLIP's own forward, layer by layer."""
        return cls(**{each.name: False for each in fields(cls) if each.name != "text_chunk"})

    @property
    def any_inside_layers(self) -> bool:
        """Whether any of them needs more than CLIP's own forward."""
        own_forward = {"text_end", "text_chunk"}
        switches = any(getattr(self, each.name) for each in fields(self) if each.name not in own_forward)
        return switches or self.text_chunk is not None
