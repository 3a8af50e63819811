"""The job of `anprompt denoise`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from anprompt_peft.denoising import (
    Denoising,
    Similarity,
    load_denoised,
    save_denoiser,
    similarity,
    train_denoiser,
)
from anprompt_peft.files import atomic_folder

from ..denoise import DenoiseOptions
from .models import choose_device, disable_progress_bars, load_clip


def make_denoiser(options: DenoiseOptions) -> Similarity:
    """Train a denoiser, write its folder in one step, and return what it does to texts that it was not trained on."""
    disable_progress_bars()
    how = Denoising(**{each.name: getattr(options, each.name) for each in fields(Denoising)})
    device = choose_device(options.device)
    with atomic_folder(options.output) as folder:
        clip, processor = load_clip(options.model)
        with tqdm(total=how.steps, unit="step") as bar:

            def show(step: int, noisy: float, clean: float) -> None:
                bar.set_postfix(noisy=f"{noisy:.3f}", clean=f"{clean:.3f}", refresh=False)
                bar.update()

            model: Any = train_denoiser(clip.to(device), processor.tokenizer, how, show)
        save_denoiser(model, folder, how)
        plain = model.unload().to("cpu")
        return similarity(plain, load_denoised(deepcopy(plain), folder), processor.tokenizer)
