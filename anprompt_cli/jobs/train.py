"""The job of `anprompt train`: draw images, train, measure, and write the adapter with all that is known about it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import get_peft_model
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed

from anprompt_peft import ANPromptConfig, Metric, TrainingFacts
from anprompt_peft.data import ClipTransform
from anprompt_peft.data.inspect import count_by_class
from anprompt_peft.files import atomic_file, hub_id, sync, sync_folder, to_json
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, read_geometry, write_report
from anprompt_peft.training import (
    FOLDS,
    ANPromptTrainer,
    ANPromptTrainingArguments,
    ShareChoice,
    choose_frozen_share,
    lock_folder,
)
from anprompt_peft.training.checkpoint import resume_point
from anprompt_peft.tuner import adapted_clip

from ..config_file import OWNED, RECORD, RESULTS, check_fields, filled
from ..errors import Interrupted
from ..records import read_record, to_yaml
from ..text import short
from ..train import LEFTOVERS, TrainOptions, check_folder, share_of
from .advice import about_names
from .callbacks import Interruption, Progress
from .draw import Images, draw_images
from .labelled import left_out, on_stderr, public_name
from .measuring import ADAPTED, ZERO_SHOT, Measured, describe, measure
from .models import choose_device, disable_progress_bars, load_clip, precision_for
from .seen import HOLD_OUT, IMAGES, Seen

REPORT, HALVES = "report.html", "base-new.json"
SHARE = "frozen_share"
CHECKPOINTS = {"save_strategy": "epoch", "save_total_limit": 2}  # a power cut may spoil the newer one
EARLY_STOPPING = {
    "eval_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "restore_callback_states_from_checkpoint": True,
}

Settings = dict[str, Any]


def train_adapter(options: TrainOptions, sections: Mapping[str, Settings]) -> tuple[Measured | None, list[str]]:
    """Begin or resume a run, alone in its folder; return the figures and what a reader of them must know.

    The figures are those of the adapter, zero-shot CLIP and a linear probe, `None` if there is no split to measure on.
    """
    output = options.output
    try:
        with lock_folder(output):
            check_folder(options)  # again, as another run may have begun meanwhile
            _remove_temporary_files(output)
            if (output / RESULTS).is_file():
                raise ValueError(f"--resume: the run in {output} is complete.")
            return _run(options, _settings(options, sections))
    except (Interrupted, KeyboardInterrupt) as error:
        if not (output / RECORD).is_file():
            raise
        stopped = error if isinstance(error, Interrupted) else Interrupted("Interrupted.")
        stopped.message += f" Continue with: anprompt train --output {shlex.quote(str(output))} --resume"
        raise stopped from None


def _run(options: TrainOptions, settings: Settings) -> tuple[Measured | None, list[str]]:
    disable_progress_bars()
    started = time.perf_counter()
    arguments = _arguments(options, settings)
    settings["precision"] = arguments.precision or options.precision
    images = draw_images(options, evaluates=arguments.eval_strategy != "no")
    config = ANPromptConfig(class_names=images.class_names, **settings["adapter"])
    for line in about_names(images.class_names):
        on_stderr(line)
    clip, processor = load_clip(settings["model"], config.revision)
    for line in images.check(options):
        on_stderr(line)
    set_seed(options.seed)
    trainer = _trainer(get_peft_model(clip, config), arguments, images, processor, options)
    record = _begin(options, settings, config, images)
    _train(trainer, resume_point(options.output), options)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False).eval()
    model.set_image_cache(None)  # images to measure on are seen once
    choice = _choose_share(settings, options, config, arguments, images) if SHARE in settings else None
    if choice is not None:
        adapted_clip(model).active_config.frozen_share = choice.share
    batches = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    measured = measure(model, images.measure, processor, *batches, images.train) if images.split else None
    facts = _facts(options, arguments, images, measured, choice)
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


# before training


def _remove_temporary_files(output: Path) -> None:
    """Remove files that a crash left half-written."""
    for path in output.glob(".*"):
        if path.is_dir() and path.name.startswith(LEFTOVERS):
            shutil.rmtree(path)


def _settings(options: TrainOptions, sections: Mapping[str, Settings]) -> Settings:
    """Return what a run is repeated from as JSON values; local paths work from anywhere."""
    settings: Settings = {}
    merged = {section: dict(sections.get(section, {})) for section in OWNED}
    places = filled(options)
    for each in fields(options):
        value = getattr(options, each.name)
        if value is None or not each.metadata.get("recorded", True):
            continue
        if each.name in places:
            section, name = places[each.name]
            merged[section][name] = _filling(name, value)
        elif isinstance(value, Path) or each.name in ("data", "model"):
            settings[each.name] = _anywhere(value)
        else:
            settings[each.name] = value
    if denoiser := merged["adapter"].get("denoiser"):
        merged["adapter"]["denoiser"] = _anywhere(denoiser)
    if merged["adapter"].get(SHARE) == FOLDS:
        settings[SHARE] = merged["adapter"].pop(SHARE)
    return {**settings, **merged}


def _anywhere(place: str | Path) -> str:
    """Return a local path as one that other working directories find, and a Hub id as it is."""
    path = Path(place).expanduser()
    return str(path.resolve() if path.exists() else place)


def _filling(name: str, value: Any) -> Any:
    """Return what an option fills a field with."""
    if name == SHARE:
        return share_of(value)
    return value[0] if name == "template" and len(value) == 1 else value


def _arguments(options: TrainOptions, settings: Settings) -> ANPromptTrainingArguments:
    """Return Trainer's arguments, and check the sections of the configuration file."""
    check_fields("adapter", settings["adapter"], ANPromptConfig)
    check_fields("training", settings["training"], ANPromptTrainingArguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("anprompt train runs as one process. For several, write a script with Accelerate.")
    device = choose_device(options.device)
    on_cpu, in_float16 = device.type == "cpu", options.precision == "fp16"
    if in_float16 and on_cpu:
        raise ValueError("--precision fp16 needs a GPU. On a CPU use fp32 or bf16.")
    return ANPromptTrainingArguments(
        output_dir=str(options.output),
        seed=options.seed,
        use_cpu=on_cpu,
        fp16=in_float16,
        precision=None if in_float16 else precision_for(options.precision, device),
        label_names=["labels"],
        **{"dataloader_pin_memory": not on_cpu, **_defaults(options), **settings["training"]},
    )


def _defaults(options: TrainOptions) -> Settings:
    """Return the defaults of Trainer's arguments that this command changes."""
    return {**CHECKPOINTS, **(EARLY_STOPPING if options.early_stopping else {})}


def _begin(options: TrainOptions, settings: Settings, config: ANPromptConfig, images: Images) -> Settings:
    """Write down what is about to run, with the defaults filled in, or compare it with the run that is resumed."""
    own = ANPromptTrainingArguments.__annotations__.keys() - OWNED["training"].keys()
    defaults = {each.name: each.default for each in fields(ANPromptTrainingArguments) if each.name in own}
    later = {SHARE} & settings.keys()  # chosen at the end
    choices = [each.name for each in fields(config) if each.name not in {*OWNED["adapter"], *later}]
    record = {
        **settings,
        "adapter": {name: getattr(config, name) for name in choices},
        "training": {**defaults, **_defaults(options), **settings["training"]},
    }
    path = options.output / RECORD
    if path.is_file():
        _check_same(path, record)
    else:
        text = to_yaml(record, "Repeat this run with: anprompt train --config run.yaml --output NEW_FOLDER")
        with atomic_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    if images.halves and not (options.output / HALVES).is_file():
        images.halves.save(options.output / HALVES)
    return record


def _check_same(path: Path, record: Settings) -> None:
    """Raise `ValueError` unless a run was begun with these settings."""
    try:
        begun = read_record(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(begun, dict):
        raise ValueError(f"{path} is not the record of a run.")
    old, new = _flat(begun), _flat(record)
    if changed := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        changes = "; ".join(f"{name} is {short(new.get(name))} and was {short(old.get(name))}" for name in changed)
        raise ValueError(f"{path} was begun with other settings: {changes}. Leave them out, or start a new run.")


def _flat(record: Settings) -> Settings:
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in record.items()}
    return {f"{name}.{key}".rstrip("."): value for name, part in parts.items() for key, value in part.items()}


# training


def _trainer(
    model: Any, arguments: ANPromptTrainingArguments, images: Images, processor: Any, options: TrainOptions
) -> ANPromptTrainer:
    model.set_image_cache(options.image_cache)
    train: Any = ClipTransform(processor, options.augment).apply(images.train)
    evaluate: Any = ClipTransform(processor).apply(images.evaluate) if images.evaluate is not None else None
    trainer = ANPromptTrainer(model, arguments, train_dataset=train, eval_dataset=evaluate)
    _show_progress(trainer)
    if options.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping))
    return trainer


def _show_progress(trainer: ANPromptTrainer, name: str = "training") -> None:
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Progress(name))


def _train(trainer: ANPromptTrainer, checkpoint: Path | None, options: TrainOptions) -> None:
    if options.resume and checkpoint:
        print(f"Resuming from {checkpoint.name} of {options.output}.", file=sys.stderr)
    elif options.resume:
        print(f"There is no checkpoint in {options.output}: training starts from the beginning.", file=sys.stderr)
    with Interruption() as interruption:
        trainer.add_callback(interruption)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            for each in trainer.callback_handler.callbacks:
                if isinstance(each, Progress):
                    each.close()
    if interruption.received:
        state = trainer.state
        note = f"Interrupted after step {state.global_step} of {state.max_steps}; a checkpoint is kept."
        raise Interrupted(note, interruption.received)


# after training


def _choose_share(
    settings: Settings,
    options: TrainOptions,
    config: ANPromptConfig,
    arguments: ANPromptTrainingArguments,
    images: Images,
) -> ShareChoice:
    """Let folds over the classes choose the frozen share, and say on standard error which."""

    def prepare(trainer: ANPromptTrainer, number: int, total: int) -> None:
        _show_progress(trainer, f"frozen share: training {number} of {total}")

    clip, processor = load_clip(settings["model"], config.revision)
    choice = choose_frozen_share(
        clip,
        config,
        arguments,
        images.train,
        processor,
        augment=options.augment,
        image_cache=options.image_cache,
        prepare=prepare,
    )
    print(f"Frozen share {choice.share:g}: {choice.reason}.", file=sys.stderr)
    return choice


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
        probe=measured.probe if measured else (),
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
    options: TrainOptions,
    arguments: ANPromptTrainingArguments,
    images: Images,
    measured: Measured | None,
    choice: ShareChoice | None,
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
            "precision": arguments.precision or options.precision,
            "augment": options.augment,
            **({"frozen_share_by_folds": choice.to_dict()} if choice else {}),
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
