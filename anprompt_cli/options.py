"""The options of every command: one frozen dataclass each, whose fields are the options.

A new option is a field here, its use in the command or its job, and its line in docs/cli.md. An option that only sets
a field of the adapter or of Trainer is used by its line in [`~anprompt_cli.config_file.SHORTCUTS`].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

from .config_file import use_file
from .grid_file import use_grid
from .streams import escaped_output
from .wording import worded

DATA, CLASSES, TRAINING, RUN, OUTPUT = "Data", "Classes", "Training", "Running", "Output"
ROBUSTNESS = "Robustness"


class Device(StrEnum):
    """Where to compute: on the GPU if there is one, or always on the CPU."""

    AUTO = "auto"
    CPU = "cpu"


class Precision(StrEnum):
    """Arithmetic of CLIP's encoders; `auto` is bfloat16 where the device multiplies it natively, else float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class TrainingPrecision(StrEnum):
    """The same, and autocast to float16."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class OnCorrupt(StrEnum):
    """What to do about images that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a function whose parameter `options` is a dataclass of options.

    typer sees the fields in place of that parameter: their names, `Annotated` types and defaults. All that the command
    prints is escaped, and an error about a value names the option instead of Python's argument.
    """
    record = get_type_hints(function)["options"]
    hints = get_type_hints(record, include_extras=True)
    others = [each for each in signature(function, eval_str=True).parameters.values() if each.name != "options"]

    @wraps(function)
    def call(**values: Any) -> None:
        given = {each.name: values.pop(each.name) for each in others}
        options = record(**values)
        with escaped_output(), worded(options):
            function(**given, options=options)

    options = [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(record)
    ]
    parameters = [*(each.replace(kind=Parameter.KEYWORD_ONLY) for each in others), *options]
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _unset(help: str, panel: str | None = None, *names: str, **settings: Any) -> Any:
    """Return an option whose default is no value of its own, so that help has nothing to show for it."""
    return Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


def _argument(metavar: str, help: str, **settings: Any) -> Any:
    return Argument(metavar=metavar, help=help, show_default=False, **settings)


IS_FILE = {"exists": True, "dir_okay": False}
Classes = Annotated[
    list[str] | None,
    _unset("Class to choose from; repeat it. Default: those the adapter was trained on.", CLASSES, metavar="NAME"),
]
Json = Annotated[bool, Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Which adapter to use."""

    adapter: Annotated[str, _argument("ADAPTER", "Folder of an adapter, or its id on the Hub.")]
    revision: Annotated[str | None, _unset("Branch, tag or commit of an adapter on the Hub.")] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(AdapterOptions):
    """How to compute with it."""

    model: Annotated[
        str | None, _unset("CLIP that the adapter was trained with: id or folder. Default: the one it names.")
    ] = None
    precision: Annotated[
        Precision,
        Option(
            help="Of CLIP's weights. auto: bf16 where the device multiplies it natively, else fp32.",
            rich_help_panel=RUN,
        ),
    ] = Precision.AUTO


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which labelled images to use."""

    data: Annotated[
        str,
        _argument(
            "DATA",
            "Labelled images: a folder with one sub-folder per class (or with train/ and test/ that have them), "
            "parquet files, or a data set on the Hub.",
        ),
    ]
    data_config: Annotated[str | None, _unset("Configuration of a data set on the Hub.", DATA)] = None
    data_revision: Annotated[str | None, _unset("Branch, tag or commit of a data set on the Hub.", DATA)] = None
    image_column: Annotated[str | None, _unset("Column with the images, if several have images.", DATA)] = None
    label_column: Annotated[str | None, _unset("Column with the labels, if several could be it.", DATA)] = None
    on_corrupt: Annotated[
        OnCorrupt, Option(help="Stop at unreadable images, or skip and count them.", rich_help_panel=DATA)
    ] = OnCorrupt.RAISE
    classes_file: Annotated[
        Path | None,
        _unset(
            "Class names to use instead of those in the data: a text file with one name per line in the order of the "
            'labels, or a JSON file with {"name in the data": "better name"}.',
            CLASSES,
            **IS_FILE,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where to run."""

    device: Annotated[
        Device, Option(help="auto: the GPU if there is one. cpu: never the GPU.", rich_help_panel=RUN)
    ] = Device.AUTO


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions, DataOptions):
    """Options of `anprompt train`."""

    output: Annotated[
        Path,
        _unset(
            "Folder to write the adapter to, with results, report and model card. It must be empty, or absent.",
            OUTPUT,
            is_eager=True,
        ),
    ]
    resume: Annotated[
        bool,
        Option(
            "--resume",
            is_eager=True,
            help="Continue the run that was begun in --output. Other options need not be repeated.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    config: Annotated[
        Path | None,
        _unset(
            "YAML or JSON file with options (`shots: 16`) and with any field of the adapter and of Trainer.",
            is_eager=True,
            callback=use_file,
            **IS_FILE,
        ),
    ] = None
    model: Annotated[str, Option(help="CLIP to adapt: its id on the Hub, or a folder.")] = (
        "openai/clip-vit-base-patch16"
    )
    shots: Annotated[
        int | None, _unset("Images per class, drawn with --seed. Default: all.", DATA, metavar="N", min=1)
    ] = None
    shots_up_to: Annotated[
        int | None,
        _unset("The same, and all images of a class that has fewer than N.", DATA, metavar="N", min=1),
    ] = None
    train_split: Annotated[str, Option(help="Split to train on.", rich_help_panel=DATA)] = "train"
    eval_split: Annotated[
        str | None, _unset("Split to measure the result on. Default: test, else validation.", DATA)
    ] = None
    test_share: Annotated[
        float | None,
        _unset("Share of the images to hold out as the split test, if there is none.", DATA, min=0.01, max=0.99),
    ] = None
    validation_share: Annotated[
        float | None, _unset("The same for the split validation, used by --early-stopping.", DATA, min=0.01, max=0.99)
    ] = None
    class_names: Annotated[
        list[str] | None,
        _unset(
            "Class name to use instead of the one in the data; repeat it for every class, in the order of the labels.",
            CLASSES,
            metavar="NAME",
        ),
    ] = None
    template: Annotated[
        list[str] | None,
        _unset("Prompt with {} for the class name; repeat it for several. Default: a photo of a {}.", CLASSES),
    ] = None
    base_only: Annotated[
        bool,
        Option(
            "--base-only",
            help="Train on the first half of the classes (base); measure on both halves (base and new).",
            rich_help_panel=CLASSES,
        ),
    ] = False
    halves: Annotated[
        Path | None,
        _unset('The same with the halves of a JSON file: {"base": [names], "new": [names]}.', CLASSES, **IS_FILE),
    ] = None
    recipe: Annotated[
        str | None,
        _unset("Weight decay, clipping and schedule: default, or paper. Default: default.", TRAINING, metavar="NAME"),
    ] = None
    epochs: Annotated[
        float | None, _unset("Passes over the training images. Default: 10.", TRAINING, metavar="N", min=0)
    ] = None
    warmup_epochs: Annotated[
        float | None,
        _unset(
            "Epochs at a constant learning rate of 1e-5 before the cosine. Default: the recipe's.",
            TRAINING,
            metavar="N",
            min=0,
        ),
    ] = None
    batch_size: Annotated[int | None, _unset("Images per step. Default: 4.", TRAINING, metavar="N", min=1)] = None
    learning_rate: Annotated[
        float | None, _unset("Peak learning rate of AdamW. Default: 0.001.", TRAINING, metavar="N", min=0)
    ] = None
    class_weights: Annotated[
        str | None,
        _unset(
            "balanced: weight the classes by their inverse frequency in the loss. Default: none.",
            TRAINING,
            metavar="NAME",
        ),
    ] = None
    early_stopping: Annotated[
        int | None,
        _unset(
            "Stop after N epochs without better accuracy on the split validation, and keep the best epoch.",
            TRAINING,
            metavar="N",
            min=1,
        ),
    ] = None
    augment: Annotated[
        bool, Option(help="Train on random crops, half of them mirrored.", rich_help_panel=TRAINING)
    ] = True
    image_cache: Annotated[
        Path | None,
        _unset(
            "Folder to cache the output of CLIP's frozen layers in, which later epochs read; with --no-augment.",
            RUN,
            file_okay=False,
            resolve_path=True,
        ),
    ] = None
    seed: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            max=2**32 - 1,
            help="Seed of shots, weights, batches and crops.",
            rich_help_panel=TRAINING,
        ),
    ] = 1
    precision: Annotated[
        TrainingPrecision,
        Option(
            help="Of CLIP's frozen weights. auto: bf16 where the device multiplies it natively, else fp32. "
            "fp16 trains with autocast, on a GPU.",
            rich_help_panel=TRAINING,
        ),
    ] = TrainingPrecision.AUTO
    workers: Annotated[
        int | None, _unset("Worker processes that load images. Default: 0.", RUN, metavar="N", min=0)
    ] = None
    report_to: Annotated[
        list[str] | None,
        _unset("Where Trainer logs to, such as tensorboard; repeat it for several.", OUTPUT, metavar="NAME"),
    ] = None
    push_to_hub: Annotated[
        str | None, _unset("Repository, namespace/name, to push the adapter to at the end.", OUTPUT, metavar="REPO")
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions, DataOptions, ModelOptions):
    """Options of `anprompt evaluate`."""

    split: Annotated[str, Option(help="Split to measure on.", rich_help_panel=DATA)] = "test"
    classes: Classes = None
    halves: Annotated[
        Path | None,
        _unset(
            "Measure base and new classes separately, and their harmonic mean: the JSON file that `train` wrote.",
            CLASSES,
            **IS_FILE,
        ),
    ] = None
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Images per step.")] = 100
    workers: Annotated[
        int, Option(metavar="N", min=0, help="Worker processes that load images.", rich_help_panel=RUN)
    ] = 0
    robustness: Annotated[
        bool,
        Option(
            "--robustness", help="Measure also under perturbed class texts and images.", rich_help_panel=ROBUSTNESS
        ),
    ] = False
    robustness_images: Annotated[
        int, Option(metavar="N", min=1, help="At most so many images for it.", rich_help_panel=ROBUSTNESS)
    ] = 500
    synonyms: Annotated[
        Path | None,
        _unset(
            'With --robustness, a JSON file with other names of classes: {"cat": ["kitten", "tabby"]}.',
            ROBUSTNESS,
            **IS_FILE,
        ),
    ] = None
    report: Annotated[Path | None, _unset("Write a report as one HTML file.", dir_okay=False)] = None
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions, ModelOptions):
    """Options of `anprompt predict`."""

    images: Annotated[
        list[str], _argument("IMAGE", "Image files, folders (searched with their sub-folders) or quoted globs.")
    ]
    top_k: Annotated[int, Option(metavar="N", min=1, help="Classes to show per image, the most likely first.")] = 3
    classes: Classes = None
    classes_file: Annotated[
        Path | None,
        _unset("The same from a file: text with one name per line, or a JSON list.", CLASSES, **IS_FILE),
    ] = None
    template: Annotated[
        list[str] | None,
        _unset("Prompt with {} for the class name; repeat it for several. Default: the adapter's own.", CLASSES),
    ] = None
    jsonl: Annotated[bool, Option("--jsonl", help="Print one JSON object per line.")] = False
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Images per step.")] = 16


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of `anprompt push`."""

    folder: Annotated[Path, _argument("ADAPTER", "Folder that `train` wrote.", exists=True, file_okay=False)]
    repo: Annotated[str, _argument("REPO", "Repository, namespace/name; created if it does not exist.")]
    private: Annotated[
        bool | None,
        _unset("Whether a new repository is private. Default: your setting on the Hub.", None, "--private/--public"),
    ] = None
    revision: Annotated[str | None, _unset("Branch to push to, created if it does not exist. Default: main.")] = None
    message: Annotated[str | None, _unset("Commit message.")] = None


class Protocol(StrEnum):
    """What is learned and measured: those of `anprompt_peft.evaluation.protocols`."""

    BASE_TO_NEW = "base-to-new"
    FEW_SHOT = "few-shot"
    ALL_CLASSES = "all-classes"
    CROSS_DATA = "cross-data"


class Halves(StrEnum):
    """How classes are cut into base and new."""

    ORDER = "order"
    RANDOM = "random"


class Sampling(StrEnum):
    """How shots are drawn."""

    COOP = "coop"
    SEEDED = "seeded"


class Source(StrEnum):
    """Where data sets of the catalog are read from."""

    FOLDER = "folder"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(RunOptions):
    """Options of `anprompt benchmark`. Nothing is required by typer, as `anprompt benchmark report` needs none."""

    output: Annotated[
        Path | None, _unset("Folder of the grid: a folder for each cell. Cells that are there are skipped.", OUTPUT)
    ] = None
    config: Annotated[
        Path | None,
        _unset(
            "YAML or JSON file with options (`shots: 16`) and with settings of methods (`methods:`).",
            is_eager=True,
            callback=use_grid,
            **IS_FILE,
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        _unset(
            "Data set: a name of the catalog, a folder, an id on the Hub, or module:function; repeat it.",
            DATA,
            metavar="NAME",
        ),
    ] = None
    root: Annotated[Path | None, _unset("Folder that holds the catalog's data sets.", DATA, file_okay=False)] = None
    source: Annotated[
        Source, Option(help="Read data sets of the catalog below --root, or from the Hub.", rich_help_panel=DATA)
    ] = Source.FOLDER
    protocol: Annotated[Protocol, Option(help="What is learned and measured.", rich_help_panel=DATA)] = (
        Protocol.BASE_TO_NEW
    )
    target: Annotated[
        list[str] | None, _unset("Data set to measure on, of cross-data; repeat it.", DATA, metavar="NAME")
    ] = None
    shots: Annotated[int, Option(metavar="N", min=1, help="Images per class.", rich_help_panel=DATA)] = 16
    halves: Annotated[
        Halves, Option(help="Base classes: the first half, or drawn with the seed.", rich_help_panel=DATA)
    ] = Halves.ORDER
    sampling: Annotated[
        Sampling, Option(help="Shots: those of CoOp's code, or a stream for each class.", rich_help_panel=DATA)
    ] = Sampling.COOP
    method: Annotated[
        list[str] | None,
        _unset(
            "Method: a preset, one named in the file, or module:Class; repeat it. Default: those of the file.",
            TRAINING,
            metavar="NAME",
        ),
    ] = None
    robustness: Annotated[
        list[str] | None,
        _unset(
            "Measure under perturbations as well: text, image, or the name of a family; repeat it.",
            DATA,
            metavar="NAME",
        ),
    ] = None
    seeds: Annotated[
        list[str] | None, _unset("Seed, or a range such as 1-3; repeat it. Default: 1-3.", TRAINING, metavar="N")
    ] = None
    model: Annotated[str, Option(help="CLIP to adapt: its id on the Hub, or a folder.")] = (
        "openai/clip-vit-base-patch16"
    )
    jobs: Annotated[int, Option(metavar="N", min=1, help="Processes.", rich_help_panel=RUN)] = 1
    threads: Annotated[int, Option(metavar="N", min=1, help="Threads of each process.", rich_help_panel=RUN)] = 1
    shard: Annotated[str, Option(metavar="I/N", help="Run one of N parts of the grid.", rich_help_panel=RUN)] = "1/1"


@dataclass(frozen=True, kw_only=True)
class BenchmarkReportOptions:
    """Options of `anprompt benchmark report`."""

    folder: Annotated[Path, _argument("FOLDER", "Folder of a grid.", exists=True, file_okay=False)]
    reference: Annotated[str, Option(metavar="NAME", help="Method that all others are compared with.")] = "anprompt"
    html: Annotated[Path | None, _unset("Write the tables and plots as one HTML file.", dir_okay=False)] = None


@dataclass(frozen=True, kw_only=True)
class DatasetsCheckOptions:
    """Options of `anprompt datasets check`."""

    root: Annotated[
        Path, _argument("ROOT", "Folder that holds the folders of the data sets.", exists=True, file_okay=False)
    ]
    name: Annotated[
        list[str] | None,
        _unset("Data set to check, or a JSON file with an entry; repeat it. Default: the catalog's.", metavar="NAME"),
    ] = None
    all_images: Annotated[
        bool, Option("--all-images", help="Decode every image, and not one of each class in each split.")
    ] = False
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class DatasetsListOptions:
    """Options of `anprompt datasets list`."""

    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class DatasetsShowOptions:
    """Options of `anprompt datasets show`."""

    name: Annotated[str, _argument("NAME", "Data set of the catalog, or a JSON file with an entry.")]


@dataclass(frozen=True, kw_only=True)
class InfoOptions(AdapterOptions):
    """Options of `anprompt info`."""

    as_json: Json = False
