"""Adapt CLIP to a folder of images, with the training loop in the open, on one process or on many.

    accelerate launch examples/train_accelerate.py --data IMAGES --model openai/clip-vit-base-patch16
    torchrun --standalone --nproc_per_node 2 examples/train_accelerate.py --data IMAGES --model MODEL

IMAGES has the folders train/<class>/ and test/<class>/, or is anything else with these splits that `load_image_data`
reads. OUTPUT gets checkpoints/, logs/ (with --report-to) and, at the end, result/ with results.json and adapter/.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed, str_to_bool
from peft import PeftModel, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClipTransform, class_names_of, few_shot, load_image_data
from anprompt_peft.fast import PRECISIONS, choose_precision, set_precision
from anprompt_peft.fast.sharding import refuse_weight_sharding
from anprompt_peft.files import atomic_folder, remove_unfinished, to_json
from anprompt_peft.provenance import provenance
from anprompt_peft.termination import sigterm_interrupts
from anprompt_peft.training import (
    RECIPES,
    NonFiniteError,
    SeededDataset,
    clear,
    keep_adapter_only,
    lock_folder,
    newest,
    save_newest,
)

NOT_SETTINGS = ("output", "resume", "save_every", "report_to")


@dataclass
class Progress:
    """Where a training stands. Every checkpoint carries it, and a run with other settings refuses it."""

    settings: dict[str, str]
    epoch: int = 0
    batches: int = 0  # of this epoch, on each process
    terms: list[dict[str, float]] = field(default_factory=list)  # of each step of the optimizer, with its epoch
    state_dict = asdict  # what Accelerate saves

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what Accelerate loaded."""
        if changed := {name: then for name, then in state["settings"].items() if then != self.settings.get(name)}:
            raise ValueError(f"The checkpoint was made with {changed}. Give the same settings, not {self.settings}.")
        vars(self).update(state)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, write the result; returns the record on every process."""
    options = parse(arguments)
    refuse_weight_sharding()
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.accumulate,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=options.seed, non_blocking=True
        ),
        step_scheduler_with_optimizer=False,  # with it, the schedule takes a step for every process
        log_with=options.report_to,
        project_dir=options.output,
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: on a CPU, Accelerate ignores it. Give --mixed-precision bf16 or no.")
    # A process of several may wait for others where no signal is looked at: there SIGTERM ends it as ever.
    signals = sigterm_interrupts() if accelerator.num_processes == 1 else nullcontext()
    with signals, lock_folder(options.output) if accelerator.is_main_process else nullcontext():
        return run(accelerator, options)


def run(accelerator: Accelerator, options: argparse.Namespace) -> dict[str, Any]:
    """Do what the options say in an output folder that no other run uses."""
    settings = {name: str(value) for name, value in vars(options).items() if name not in NOT_SETTINGS}
    settings |= {"processes": str(accelerator.num_processes), "mixed_precision": accelerator.mixed_precision}
    settings["precision"] = choose_precision(options.precision, accelerator.device)
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}: {settings}")
    accelerator.init_trackers("logs", config=settings)
    set_seed(options.seed)
    train_loader, test_loader, plain_loader, names = load_data(accelerator, options)
    clip = CLIPModel.from_pretrained(options.model).to(accelerator.device)
    adapted = get_peft_model(clip, ANPromptConfig(class_names=names, template=options.template))
    set_precision(adapted, settings["precision"])
    adapted.shard_class_texts()
    progress = Progress(settings)
    model = train(accelerator, adapted, train_loader, progress, options)
    adapted.fit_classifier(plain_loader, seed=options.seed)  # on all shots, the same on every process
    correct, images = evaluate(accelerator, model, test_loader)
    accelerator.log({"accuracy": correct / images}, step=len(progress.terms))
    accelerator.end_training()
    loss_terms = pd.DataFrame(progress.terms).groupby("epoch").mean().to_dict("records")
    record = {"accuracy": correct / images, "test_images": images, "loss_terms": loss_terms}
    record |= {"settings": settings, "adapter_config": adapted.active_peft_config.to_dict(), **provenance()}
    if accelerator.is_main_process:
        with atomic_folder(options.output / "result", replaces="results.json") as folder:
            adapted.save_pretrained(str(folder / "adapter"))
            (folder / "results.json").write_text(to_json(record))
    accelerator.print(f"{correct} of {images} test images right. Written to {options.output}/result/")
    return record


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="folder, parquet files or data set on the Hub, with splits train and test")
    add("--model", required=True, help="CLIP to adapt: folder or Hub id")
    add("--template", default="a photo of a {}.", help="text around a class name")
    add("--shots", type=int, default=16, help="training images per class (default 16)")
    add("--recipe", choices=RECIPES, default="default", help="weight decay, clipping and schedule: paper or default")
    add("--epochs", type=int, default=10, help="passes over the images (default 10)")
    add("--warmup-epochs", type=float, help="epochs at a constant 1e-5 before the cosine (default: the recipe's)")
    add("--batch-size", type=int, default=4, help="images per batch and process (default 4)")
    add("--accumulate", type=int, default=1, help="batches per optimizer step (default 1)")
    add("--learning-rate", type=float, default=1e-3, help="peak rate of AdamW (default 1e-3)")
    add("--seed", type=int, default=1, help="of shots, weights and batches; the paper averages over 1, 2 and 3")
    add("--workers", type=int, default=0, help="processes that read images, for each process (default 0)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of CLIP's frozen weights (default: fp32)")
    add("--mixed-precision", choices=["no", "fp16", "bf16"], help="default: what accelerate launch says")
    add("--report-to", help="tracker to log to: tensorboard, wandb or another that Accelerate knows")
    add("--save-every", type=int, default=0, help="optimizer steps between checkpoints, besides those of every epoch")
    resuming: Any = {"type": str_to_bool, "nargs": "?", "const": True, "default": False, "metavar": "True"}
    add("--resume", "--resume_from_checkpoint", **resuming, help="go on from the newest whole checkpoint in OUTPUT")
    add("--output", type=Path, default=Path("outputs/accelerate"), help="folder to write to")
    options = parser.parse_args(arguments)
    installed = [tracker.value for tracker in get_available_trackers()]
    if options.report_to not in (None, *installed):
        parser.error(f"--report-to {options.report_to}: not installed (pip install {options.report_to}) or unknown")
    if options.resume != bool(newest(options.output / "checkpoints")):
        parser.error(f"{options.output} has {'no checkpoint' if options.resume else 'a checkpoint: give --resume'}")
    return options


def load_data(accelerator: Accelerator, options: argparse.Namespace) -> tuple[Any, Any, Any, list[str]]:
    """Return loaders of this process's share of the training and the test images, one of all training images without
    augmentation, and the class names."""
    with accelerator.main_process_first():
        train_images, test_images = load_image_data(options.data, "train"), load_image_data(options.data, "test")
    processor = CLIPProcessor.from_pretrained(options.model)
    drawn, plain = few_shot(train_images, options.shots, options.seed), ClipTransform(processor)
    shots = ClipTransform(processor, augment=True).apply(drawn)
    reading: Any = {"num_workers": options.workers, "pin_memory": accelerator.device.type == "cuda"}
    # Crops follow from seed, epoch and image, and the order from a generator: a resumed run sees the same batches,
    # and reading them leaves alone the random numbers that the model draws its texts from.
    rows, order = SeededDataset(shots, options.seed), torch.Generator()
    train_loader = DataLoader(rows, options.batch_size, shuffle=True, generator=order, **reading)
    test_loader, plain_loader = (DataLoader(plain.apply(images), 100, **reading) for images in (test_images, drawn))
    return *accelerator.prepare(train_loader, test_loader), plain_loader, class_names_of(train_images)


def train(accelerator: Accelerator, adapted: PeftModel, loader: Any, progress: Progress, options: Any) -> Any:
    """Train the adapter, from the newest checkpoint if asked, and return the model as Accelerate prepared it."""
    epoch_steps = math.ceil(len(loader) / accelerator.gradient_accumulation_steps)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    recipe = RECIPES[options.recipe]
    on_gpu = accelerator.device.type == "cuda"
    optimizer: Any = torch.optim.AdamW(weights, options.learning_rate, weight_decay=recipe.weight_decay, fused=on_gpu)
    schedule: Any = recipe.schedule(optimizer, epoch_steps, options.epochs * epoch_steps, options.warmup_epochs)
    model, optimizer, schedule = accelerator.prepare(adapted, optimizer, schedule)
    if isinstance(model, DistributedDataParallel):
        model.forward_sync_buffers = False  # equal since the line above, and nothing writes to them
    keep_adapter_only(accelerator, adapted)
    accelerator.register_for_checkpointing(progress)
    checkpoints = options.output / "checkpoints"
    if accelerator.is_main_process:  # remove what a crash left
        clear(checkpoints)
        remove_unfinished(options.output / "result")
    accelerator.wait_for_everyone()
    set_seed(options.seed, device_specific=True)
    if options.resume:
        accelerator.load_state(str(newest(checkpoints)))
    model.train()
    total, done = options.epochs * epoch_steps, len(progress.terms)
    bar = tqdm(total=total, initial=done, disable=not accelerator.is_main_process)
    for epoch in range(progress.epoch, options.epochs):
        loader.dataset.epoch.fill_(epoch)
        loader.set_epoch(epoch)
        window = []  # the loss terms of the batches of one step
        batches = accelerator.skip_first_batches(loader, progress.batches)
        batches.set_epoch(epoch)  # which older releases of Accelerate do not carry over
        for number, batch in enumerate(batches, start=progress.batches + 1):
            with accelerator.accumulate(model):
                output = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
                accelerator.backward(output.loss)
                if accelerator.sync_gradients and recipe.max_grad_norm:
                    accelerator.clip_grad_norm_(weights, recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            window.append(torch.stack([output.loss.detach(), *output.loss_terms.values()]))
            if not accelerator.sync_gradients:
                continue
            means = accelerator.reduce(torch.stack(window).mean(dim=0), "mean").tolist()
            terms, window = dict(zip(["loss", *output.loss_terms], means, strict=True)), []
            progress.terms.append({"epoch": epoch, **terms})
            step = len(progress.terms)
            if not all(map(math.isfinite, means)):  # on all processes alike
                raise NonFiniteError(
                    f"The loss is {means[0]} at step {step}, batch {number} of epoch {epoch + 1}. "
                    f"Training stops; the checkpoint from before stays in {checkpoints}."
                )
            accelerator.log({**terms, "learning_rate": schedule.get_last_lr()[0]}, step=step)
            if not accelerator.optimizer_step_was_skipped:
                schedule.step()
            bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=means[0])
            is_last = number == len(loader)
            progress.epoch, progress.batches = (epoch + 1, 0) if is_last else (epoch, number)
            if is_last or (options.save_every and step % options.save_every == 0):
                save_newest(accelerator, checkpoints, step)
    bar.close()
    return model


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: Any, loader: Any) -> tuple[int, int]:
    """Return how many test images are classified right, and how many there are, over all processes."""
    model.eval()
    correct = images = 0
    for batch in loader:
        hits = model(pixel_values=batch["pixel_values"]).logits.argmax(dim=1) == batch["labels"]
        hits = accelerator.gather_for_metrics(hits)
        correct, images = correct + int(hits.sum()), images + len(hits)
    return correct, images


if __name__ == "__main__":
    main()
