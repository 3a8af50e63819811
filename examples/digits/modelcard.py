"""The model card of the tiny CLIP, written from the record of its training."""

from typing import Any

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, digits]
---

# A tiny CLIP for digits and letters

A `CLIPModel` of {parameters:,} parameters (32 px images, patches of {patch} px, {layers} layers of width {hidden}),
pre-trained from nothing in {steps:,} steps on glyphs rendered from the fonts that matplotlib ships, redrawn with a
random pen and deformed, with captions. It has seen digits and letters of those fonts and no handwriting.

It exists to try adapters on real images within minutes. It is no use for photographs.

Zero-shot accuracy on the 40 % of scikit-learn's handwritten digits that served to choose this recipe, and that no
reported figure is taken on:

| classes | accuracy |
|---|---|
{rows}

Made by

    python examples/digits/pretrain.py --output DIR --seed {seed}

`training.json` holds the recipe and all versions. The same seed gives the same weights on the same machine, and nearly
the same elsewhere.
"""


def model_card(record: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        record: what training.json holds.
    """
    accuracies = record["zero_shot_accuracy_recipe_split"]
    return CARD.format(
        **record["recipe"],
        parameters=record["parameters"],
        rows="\n".join(f"| {name} | {100 * accuracy:.1f} % |" for name, accuracy in accuracies.items()),
        seed=record["seed"],
    )
