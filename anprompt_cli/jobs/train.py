"""The job of `anprompt train`: train, measure, and write the adapter with all that is known about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import get_peft_model
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from anprompt_peft import Metric, TrainingFacts
from anprompt_peft.data import ClipTransform
from anprompt_peft.files import hub_id, sync, sync_folder, to_json
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, read_geometry, write_report
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from anprompt_peft.training.checkpoint import resume_point

from ..config_file import RESULTS
from ..errors import Interrupted
from ..options import TrainOptions
from .interrupt import Interruption
from .labelled import count_by_class, left_out, names_hint, public_name
from .measuring import ADAPTED, ZERO_SHOT, Measured, describe, measure
from .models import load_clip, quieten
from .plan import Images, adapter_config, begin, draw_images, training_arguments
from .seen import HOLD_OUT, IMAGES, Seen

REPORT = "report.html"


class Progress(ProgressCallback):
    """Trainer's progress bar, with a name, and with losses on standard error instead of standard output."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        self.training_bar.set_description("training")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line with the loss, or with what evaluation found."""
        shown = {name: value for name, value in (logs or {}).items() if name in ("loss", "eval_loss", "eval_accuracy")}
        if shown:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            tqdm.write(f"epoch {state.epoch:.4g}: {figures}", file=sys.stderr)


def train_adapter(options: TrainOptions, settings: Mapping[str, Any]) -> tuple[Measured | None, list[str]]:
    """Train as the options say, from the last checkpoint in the output folder if there is one.

    Args:
        options (`TrainOptions`): the command's. The output folder is empty or absent, or holds a run that was started
            with the same settings.
        settings (`Mapping`): what [`~anprompt_cli.config_file.effective`] returned.

    Returns:
        `tuple`: how the adapter, zero-shot CLIP and a linear probe do on the split to measure on, `None` if there is
        none, and what a reader of the figures must know.

    Raises:
        ValueError: if an option is wrong.
        Failure: if images or the base model cannot be read.
        Interrupted: after Ctrl-C or SIGTERM; the folder then holds a checkpoint.
    """
    quieten()
    started = time.perf_counter()
    arguments = training_arguments(options, settings)
    settings = {**settings, "precision": arguments.precision or str(options.precision)}
    images = draw_images(options, evaluates=arguments.eval_strategy != "no")
    config = adapter_config(settings, images.class_names)
    if hint := names_hint(images.class_names):
        print(hint, file=sys.stderr)
    clip, processor = load_clip(settings["model"], config.revision)
    images.check(options.on_corrupt)
    set_seed(options.seed)
    trainer = _trainer(get_peft_model(clip, config), arguments, images, processor, options)
    record = begin(options, settings, config, images)
    checkpoint = resume_point(options.output)
    if options.resume:
        print(_origin(checkpoint, options.output), file=sys.stderr)
    _train(trainer, checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False).eval()
    model.set_image_cache(None)  # images to measure on are seen once
    batches = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    measured = measure(model, images.measure, processor, *batches, images.train) if images.split else None
    facts = _facts(options, arguments, images, measured)
    model.describe_training(facts)
    seen = images.seen(chooses=arguments.load_best_model_at_end)
    notes = _notes(options, images, measured, seen)
    made = {
        "notes": notes,
        "history": trainer.state.log_history,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    report = _report(f"ANPrompt on {public_name(options.data)}", model, measured, facts, made)
    _write(options.output, model, processor, {**_results(record, images, measured), **made}, seen, report)
    return measured, notes


def _trainer(
    model: Any, arguments: ANPromptTrainingArguments, images: Images, processor: Any, options: TrainOptions
) -> ANPromptTrainer:
    model.set_image_cache(options.image_cache)
    train: Any = ClipTransform(processor, options.augment).apply(images.train)
    evaluate: Any = ClipTransform(processor).apply(images.evaluate) if images.evaluate is not None else None
    trainer = ANPromptTrainer(model, arguments, train_dataset=train, eval_dataset=evaluate)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not arguments.disable_tqdm:
        trainer.add_callback(Progress)
    if options.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping))
    return trainer


def _train(trainer: ANPromptTrainer, checkpoint: Path | None) -> None:
    with Interruption() as interruption:
        trainer.add_callback(interruption)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            _close_bars(trainer)
    if interruption.received:
        state = trainer.state
        note = f"Interrupted after step {state.global_step} of {state.max_steps}; a checkpoint is kept."
        raise Interrupted(note, interruption.received)


def _origin(checkpoint: Path | None, output: Path) -> str:
    if checkpoint is None:
        return f"There is no checkpoint in {output}: training starts from the beginning."
    return f"Resuming from {checkpoint.name} of {output}."


def _close_bars(trainer: ANPromptTrainer) -> None:
    """End the line of a bar that training left open, so that an error begins one of its own."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Progress) and callback.training_bar is not None:
            callback.training_bar.close()


def _results(record: Mapping[str, Any], images: Images, measured: Measured | None) -> dict[str, Any]:
    return {
        **(measured.to_dict() if measured else {}),
        "split": images.split,
        "train_images": count_by_class(images.train),
        "left_out": images.corrupt,
        "halves": asdict(images.halves) if images.halves else None,
        "seeds": [record["seed"]],
        "config": dict(record),
    }


def _report(
    title: str, model: Any, measured: Measured | None, facts: TrainingFacts, made: Mapping[str, Any]
) -> ReportData:
    return ReportData(
        title,
        predictions=measured.adapted if measured else (),
        zero_shot=measured.zero_shot if measured else (),
        history=made["history"],
        geometry=read_geometry(model),
        settings={**facts.arguments, **describe(model)},
        provenance={name: made[name] for name in ("versions", "git_commit", "hardware")},
        notes=made["notes"],
    )


def _notes(options: TrainOptions, images: Images, measured: Measured | None, seen: Seen) -> list[str]:
    """Return what a reader of the figures must know."""
    notes = [*(measured.notes() if measured else ()), *left_out(images.corrupt)]
    cure = HOLD_OUT if images.split == options.train_split else "Remove what is in both splits from one of them."
    return [*notes, *seen.notes(images.measure, cure)]


def _facts(
    options: TrainOptions, arguments: ANPromptTrainingArguments, images: Images, measured: Measured | None
) -> TrainingFacts:
    data, seed = public_name(options.data), options.seed
    trained_on = f"{len(images.train)} images of {len(images.class_names)} classes"
    figures = measured.estimates() if measured else {ADAPTED: {}}
    metrics = [
        Metric(
            "accuracy",
            estimate.value,
            data,
            name="harmonic mean of both accuracies, %" if name == "harmonic mean" else f"accuracy ({name}), %",
            split=images.split,
            seeds=[seed],
            interval=(estimate.low, estimate.high),
            baseline=figures[ZERO_SHOT][name].value,
        )
        for name, estimate in figures[ADAPTED].items()
    ]
    return TrainingFacts(
        training_data=f"{trained_on} from {data}, split {options.train_split}.",
        datasets=[data] if hub_id(options.data) else [],
        arguments={
            "shots": f"up to {options.shots_up_to}" if options.shots_up_to else options.shots,
            "seed": seed,
            "recipe": arguments.recipe,
            "epochs": arguments.num_train_epochs,
            "warmup_epochs": arguments.warmup_epochs,
            "batch_size": arguments.per_device_train_batch_size,
            "learning_rate": arguments.learning_rate,
            "class_weights": arguments.class_weights,
            "early_stopping": options.early_stopping,
            "precision": arguments.precision or str(options.precision),
            "augment": options.augment,
        },
        metrics=metrics,
    )


def _write(output: Path, model: Any, processor: Any, results: dict[str, Any], seen: Seen, report: ReportData) -> None:
    """Write all files to a temporary folder, then move them, the results last: if they are there, the rest is."""
    with TemporaryDirectory(dir=output, prefix=".new-") as scratch:
        folder = Path(scratch)
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        processor.image_processor.save_pretrained(scratch)  # a file of its own, which version 0.1.0 reads
        write_report(report, folder / REPORT)
        (folder / IMAGES).write_text(to_json(asdict(seen)), encoding="utf-8")
        (folder / RESULTS).write_text(to_json(results), encoding="utf-8")
        sync(folder)
        for path in folder.iterdir():
            if path.name != RESULTS:
                path.replace(output / path.name)
        sync_folder(output)
        (folder / RESULTS).replace(output / RESULTS)
    sync_folder(output)
