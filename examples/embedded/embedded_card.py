"""The model card of the embedded suite's tiny CLIP, written from the record of its training."""

from __future__ import annotations

from typing import Any

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, icons, digits]
---

# A tiny CLIP for icons, digits and letters

A `CLIPModel` of {parameters:,} parameters (32 px images, patches of {patch} px, {layers} layers of width {hidden}),
pre-trained from nothing in {steps:,} steps on the icons of Font Awesome 5 and 6, Material Design Icons 6, Codicons and
Elusive, and on characters of the fonts that matplotlib ships, with captions. It has seen no icon of Phosphor or Remix
and no handwriting.

It exists to compare adapters within minutes. It is no use for photographs.

Zero-shot accuracy on what served to develop it, and that no reported figure is taken on. "Phosphor" and "Remix" are
all development concepts, with "50" 50 of them; the digits are the "recipe" split of scikit-learn's.

| | accuracy |
|---|---|
{rows}

The weights are stored as float16 and load as float32. Made by

    python examples/embedded/pretrain_embedded.py --output DIR --seed {seed}

`training.json` holds the recipe and all versions. The same seed gives the same weights on the same machine, and nearly
the same elsewhere. The icons' licences are in the documentation, under "What the embedded suite can and cannot tell".
"""


def embedded_card(record: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        record (`dict`): what training.json holds.
    """
    figures = record["zero_shot_accuracy_development"]
    return CARD.format(
        **record["recipe"],
        parameters=record["parameters"],
        rows="\n".join(f"| {name} | {100 * accuracy:.1f} % |" for name, accuracy in figures.items()),
        seed=record["seed"],
    )
