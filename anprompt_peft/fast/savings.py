"""`Savings`: how much work a step leaves out. The results are the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Savings:
    """All work that changes no result is left out, with the layers decomposed; [`Savings.none`] leaves out none.

    Attributes:
        text_chunk (`int`, *optional*): computes that many texts at a time and again in the backward pass, to bound
            the memory of many classes.
        decomposed (`bool`): `False` in [`Savings.none`] alone.

    Raises:
        ValueError: if `text_chunk` is not a positive integer, or stands with `decomposed=False`.
    """

    text_chunk: int | None = None
    decomposed: bool = True

    def __post_init__(self) -> None:
        if self.text_chunk is None:
            return
        if not isinstance(self.text_chunk, int) or self.text_chunk < 1:
            raise ValueError(f"text_chunk={self.text_chunk!r} must be a number of texts, at least 1, or None.")
        if not self.decomposed:
            raise ValueError(
                f"text_chunk={self.text_chunk} has no effect in CLIP's own forward, which computes all texts at once. "
                f"Use Savings(text_chunk={self.text_chunk}), or Savings.none() without text_chunk."
            )

    @classmethod
    def none(cls) -> Savings:
        """Return the plain path: CLIP's own forward, layer by layer, with texts padded to the context's end."""
        return cls(decomposed=False)
