"""Makes the golden adapters of the current format, and the small CLIP below them when it is not there yet.

    PYTHONPATH=tests:examples/embedded python -m golden.make

What is stored decides, not the seeds: an adapter of a released format is never made again. `tests/test_golden.py`
loads them all, and `docs/compatibility.md` says what they promise.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import chdir
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from anprompt_peft import ANPromptConfig
from anprompt_peft.denoising.train import TARGETS
from anprompt_peft.files import atomic_folder
from anprompt_peft.method.config import FORMAT_VERSION
from helpers import scatter
from tokenization import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CLIP = Path("tests/golden/clip")  # relative, since adapters store it as the name of their base model
FORMAT = Path(f"tests/golden/format-{FORMAT_VERSION}")
CONTEXT, IMAGE_SIZE = 24, 16
TRAINED, OTHERS = ["cat", "dog", "small fish"], ["red bird", "dog", "cow", "drawing"]
EXPECTED, PIXELS = "expected.safetensors", "pixels.safetensors"

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "low-rank": {"projection_rank": 2, "prototype_rank": 3},
    "fixed-map": {"latent_dim": 6},
    "learned-map": {"latent_dim": 6, "noise_map": "learned"},
    "no-updates": {"text_update_rank": None, "rephrased_weight": 0.0},
    "add": {"noise_integration": "add", "num_virtual_tokens": 3, "num_noise_tokens": 3},
    "templates": {"template": ["a photo of a {}.", "the drawing of one {}.", "{}"]},
    "attention-updates": {"vision_lora_rank": 2, "text_lora_rank": 1},
    "updates-alone": {
        "num_virtual_tokens": 0,
        "num_noise_tokens": 0,
        "text_update_rank": 2,
        "vision_lora_rank": 2,
        "text_lora_rank": 1,
    },
    "prompt-mixing": {"prompt_mixing": 0.6, "alpha": 0.4, "vision_layers": [1, 2, 3], "text_layers": [2]},
    "classifier": {"classifier_weight": 0.7},
    "denoiser": {"denoiser": "a folder of random updates of rank 2, made here"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden adapters of the current format.")
    parser.add_argument("--force", action="store_true", help=f"replace {FORMAT} if it is there")
    force = parser.parse_args().force
    with chdir(ROOT):
        if not CLIP.exists():
            make_clip(CLIP)
        make_adapters(FORMAT, force)


def make_clip(folder: Path) -> None:
    """Write a random CLIP with float16 weights, its tokenizer and two images."""
    tokenizer = train_tokenizer(["a photo of a cat, a dog, a small fish", "the drawing of one red bird"], 20, CONTEXT)
    config = CLIPConfig(
        text_config={
            "hidden_size": 12,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
        },
        projection_dim=8,
    )
    clip = CLIPModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name != "logit_scale":
                mean = float("norm" in name and name.endswith("weight"))
                parameter.copy_(mean + 0.2 * torch.randn(parameter.shape, generator=generator))
    with atomic_folder(folder) as fresh:
        clip.half().save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        save_file({"pixel_values": pixels}, fresh / PIXELS)


def make_adapters(folder: Path, force: bool = False) -> None:
    """Write one adapter per variant, with what it answers.

    Raises:
        FileExistsError: if the folder holds adapters, unless `force` is set.
    """
    with atomic_folder(folder, replaces="default/adapter_config.json" if force else None) as fresh:
        for name, settings in VARIANTS.items():
            settings = {"text_layers": 2, "vision_layers": 2, "class_names": TRAINED, **settings}
            adapter, denoiser = fresh / name, fresh / "updates"
            if settings.get("denoiser"):
                make_denoiser(denoiser)
                settings["denoiser"] = str(denoiser)
            model = scatter(get_peft_model(load_clip(torch.float32), ANPromptConfig(**settings)), scale=0.3)
            if settings.get("classifier_weight"):
                pixels = load_file(CLIP / PIXELS)["pixel_values"]
                model.fit_classifier([{"pixel_values": pixels, "labels": [0, 2]}])
            model.save_pretrained(str(adapter))
            (adapter / "README.md").unlink()
            path = adapter / "adapter_config.json"
            named = dict.fromkeys(("base_model_name_or_path", "tokenizer_name_or_path"), str(CLIP))
            path.write_text(json.dumps({**json.loads(path.read_text()), **named, "denoiser": None}, indent=2) + "\n")
            rmtree(denoiser, ignore_errors=True)
            save_file(outputs(load(adapter)), adapter / EXPECTED)


def make_denoiser(folder: Path) -> None:
    """Write random updates in the form of a text denoiser."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=1, use_rslora=True, target_modules=TARGETS, init_lora_weights=False)
    model = get_peft_model(load_clip(torch.float32), config)
    config.init_lora_weights = True  # as denoisers have it; it does not matter any more
    model.save_pretrained(str(folder))


def load_clip(dtype: torch.dtype = torch.float64) -> CLIPModel:
    """Return the stored CLIP; run from the root of the repository."""
    return CLIPModel.from_pretrained(CLIP, dtype=dtype)


def load(adapter: Path) -> PeftModel:
    """Return a stored adapter on the stored CLIP, in evaluation mode and float64."""
    return PeftModel.from_pretrained(load_clip(), os.fspath(adapter)).double().eval()


@torch.no_grad()
def outputs(model: Any) -> dict[str, Tensor]:
    """Return the logits of each kind, float64 `[2, C]`, for the trained classes and for others."""
    pixels = load_file(CLIP / PIXELS)["pixel_values"].double()
    found = {}
    for name, classes in (("trained", None), ("others", OTHERS)):
        model.set_classes(classes)
        answer = model(pixel_values=pixels)
        for kind in ("logits", "logits_class", "logits_prototype", "logits_fused"):
            if kind in answer:  # there are no prototypes without prompts
                found[f"{name}.{kind}"] = answer[kind].contiguous()
    return found


if __name__ == "__main__":
    main()
