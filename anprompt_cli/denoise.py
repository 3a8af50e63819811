"""`anprompt denoise`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from .adapters import check_repo
from .options import OUTPUT, TRAINING, RunOptions, argument, command, number, option
from .push import upload


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions(RunOptions):
    """Options of `anprompt denoise`."""

    model: str = argument("MODEL", "CLIP whose text encoder is denoised: its id on the Hub, or a folder.")
    output: Path = option("Folder to write the denoiser to. It must be empty, or absent.", OUTPUT, default=MISSING)
    steps: int = number("Steps of AdamW.", TRAINING, default=4000)
    batch_size: int = number("Pairs of a clean and a noisy text per step.", TRAINING, default=32)
    rank: int = number("Rank of the updates.", TRAINING, default=16)
    learning_rate: float = number("Peak learning rate.", TRAINING, min=0, default=5e-3)
    hold: float = number("Weight of the term that holds clean texts to their features.", TRAINING, min=0, default=3.0)
    seed: int = number("Seed of the texts and of the updates.", TRAINING, default=1, min=0, max=2**32 - 1)
    push_to_hub: str | None = option(
        "Repository, namespace/name, to push the denoiser to at the end.", OUTPUT, metavar="REPO"
    )


@command
def denoise(options: DenoiseOptions) -> None:
    """Teach the text encoder of a CLIP to see through phrasing, without any image or class name.

    * `anprompt denoise openai/clip-vit-base-patch16 --output denoiser`

    The result is a stock LoRA adapter, made once for a CLIP. Stock PEFT loads it:
    `PeftModel.from_pretrained(clip, "denoiser").merge_and_unload()`.

    Ctrl-C leaves nothing: there are no checkpoints.
    """
    if options.push_to_hub:
        check_repo(options.push_to_hub)
    from .jobs.denoise import make_denoiser

    found = make_denoiser(options)
    print(
        f"Cosine of noisy texts with the plain ones: {found.frozen:.3f} before, {found.noisy:.3f} with the denoiser. "
        f"Plain texts keep {found.clean:.3f}."
    )
    print(f"Written to {options.output}/: a LoRA adapter of the text encoder, with its card.")
    if options.push_to_hub:
        print(upload(options.output, options.push_to_hub, commit_message="Upload text denoiser"))
