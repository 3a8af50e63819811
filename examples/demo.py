"""A page to try an adapter on: upload an image, type class names, compare with zero-shot CLIP.

python examples/demo.py ADAPTER [--port 7860]

ADAPTER is a folder that `model.save_pretrained(...)` wrote, or the id of such a repository on the Hub. The page is
served to this machine only. It needs gradio: pip install 'anprompt-peft[demo]'
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from peft import AutoPeftModel
from PIL import Image
from transformers import CLIPProcessor

from anprompt_peft.extras import extra
from anprompt_peft.serve import predict  # also registers the method

Shares = dict[str, float]
Source = str | Image.Image


class Demo:
    """An adapter, given by a folder or Hub id, its base model and its processor."""

    def __init__(self, adapter: str) -> None:
        self.model: Any = AutoPeftModel.from_pretrained(adapter)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = CLIPProcessor.from_pretrained(self.model.get_base_model().name_or_path)

    def classify(self, image: Source | None, classes: str) -> tuple[Shares, Shares]:
        """Probabilities of classes (separated by commas or line breaks) for an image: with the adapter and without."""
        names = [name.strip() for name in classes.replace("\n", ",").split(",") if name.strip()]
        if image is None:
            raise ValueError("There is no image: upload one.")
        if len(names) < 2:
            raise ValueError(f"{names} are too few class names: give at least two, separated by commas.")
        self.model.set_classes(names)
        (adapted,) = predict(self.model, [image], self.processor, top_k=len(names))
        with self.model.disable_adapter():
            (zero_shot,) = predict(self.model, [image], self.processor, top_k=len(names))
        if adapted.error:
            raise ValueError(adapted.error)
        return dict(adapted.ranking), dict(zero_shot.ranking)

    def page(self) -> Any:
        """The page, as gradio's `Blocks`."""
        with extra("demo"):
            import gradio

        def classify(image: Source | None, classes: str) -> tuple[Shares, Shares]:
            try:
                return self.classify(image, classes)
            except ValueError as error:
                raise gradio.Error(str(error)) from error

        with gradio.Blocks(title="ANPrompt", analytics_enabled=False) as page:
            with gradio.Row():
                with gradio.Column():
                    image = gradio.Image(type="filepath", image_mode=None, label="Image")
                    classes = gradio.Textbox(", ".join(self.model.class_names), label="Class names", lines=3)
                    button = gradio.Button("Classify", variant="primary")
                with gradio.Column():
                    adapted = gradio.Label(label="With the adapter", num_top_classes=5)
                    zero_shot = gradio.Label(label="Zero-shot CLIP", num_top_classes=5)
            button.click(classify, [image, classes], [adapted, zero_shot], api_name="classify")
        return page


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    options = parser.parse_args(arguments)
    Demo(options.adapter).page().launch(server_name="127.0.0.1", server_port=options.port, share=False)


if __name__ == "__main__":
    main()
