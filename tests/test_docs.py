"""Every block of every page, Python and shell, as printed and in the install that the page names.

What cannot run here stands in one of two tables with its reason, and its program, files and options are checked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from peft import get_peft_model
from PIL import Image
from transformers import CLIPModel
from typer.main import get_command

import documented
from anprompt_cli import app
from anprompt_peft import ANPromptConfig
from documented import ROOT, Block, PythonSession, modules_of, options_of, read_blocks, run_command
from handwriting import load_split
from helpers import make_model, scatter
from hub_server import REVISION, HubHandler, HubServer, Route
from peers import processor_of
from test_data_hub import DatasetHandler

TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
PAGES = documented.pages()
SHELL = ("", "bash", "sh", "console")
CLASSES = ("cat", "dog", "horse", "rabbit")

# Pages that take half a minute or more, and whose commands other tests run.
LONG_PAGES = {"docs/cli.md", "docs/index.md", "docs/robustness.md", "docs/training.md"}
# What a page takes as given; everything else, imports included, it must bring itself.
ASSUMED = {
    "README.md": ["pixel_values", "labels"],
    "docs/benchmark-data.md": ["processor"],
    "docs/data.md": ["processor"],
    "docs/publish.md": ["arguments", "clip", "data", "model"],
    "docs/speed.md": ["model"],
    "docs/training.md": ["accelerator", "model", "processor", "step", "train", "validation"],
}
# Pages whose Python blocks are ways to choose from, so that each one runs in a process of its own.
SEPARATE = {"docs/serving.md"}
# Names of the class folders in `photos`, where a page renames them.
CLASS_FOLDERS = {"docs/data.md": ("n02084071", "n02121808")}
# Whose token is in HF_TOKEN: the owner of the repositories that a page pushes to.
OWNERS = {"docs/cli.md": "my-name"}
# What is put in place of a text of a page.
REPLACED = {
    ("docs/data.md", '"photos/*.parquet"'): '"tables/*.parquet"',  # `photos` holds the images of the line above
    ("docs/index.md", "num_train_epochs=3"): "num_train_epochs=1",
    ("docs/publish.md", 'tag="v1"'): 'tag="v2"',  # the section above it has loaded v1 already
    ("docs/training.md", '"outputs/run",'): '"outputs/run", num_train_epochs=1,',  # three trainings of ten epochs
    ("examples/quickstart.ipynb", "save_strategy="): "num_train_epochs=1, save_strategy=",
}
# Commands that are not run, as patterns, with the reason.
NOT_RUN = {
    r"(python -m )?pip install .*": "there is no network; test_installs reads it",
    r"git clone .*": "there is no network",
    r"python3 run\.py test": "it is this suite",
    r"python3 run\.py compare": "minutes of training; test_embedded.py runs its script small",
    r"python3 run\.py digits.*": "minutes of training; test_digits.py runs its script small",
    r"python3 run\.py classify .*": "it needs the result of `digits`; test_digits.py runs its script",
    r"(PYTHONPATH=\S+ )?python examples/speed/.*": "minutes at the size of ViT-B/16; test_speed.py runs it small",
    r"python examples/embedded/pretrain_embedded\.py .*": "minutes; test_embedded.py runs it small",
    r"anprompt benchmark .*--root data .*|.* report tables .*": "it needs the published data sets",
    r"anprompt benchmark (--config [\w-]+\.yaml|report ablations).*": "minutes; test_embedded.py reads the grids",
    r"anprompt denoise .*": "minutes; test_denoising.py runs it small, and the page the same in Python",
    r"anprompt serve .*|curl .*": "it ends with a signal; test_serve.py asks it",
    r"anprompt train .*--resume": "it needs an interrupted run; test_cli.py resumes several",
}
# Python blocks that are not run, by page and a text in them, with the reason.
NOT_RUN_PYTHON = {
    ("examples/speed/README.md", "fully_shard"): "needs several processes; test_distributed.py trains this way",
}
# Programs that a page may name although no package here brings them.
OTHER_PROGRAMS = {"bash", "cd", "curl", "git", "make", "pip", "pipx", "pre-commit", "python", "python3"}


class PageHandler(DatasetHandler):
    """The routes of models and of data sets, and of names without a user: AutoPeftModel asks for those of folders."""

    bare: Route = ("GET", rf"/(?P<repo>[\w.-]+)/resolve/{REVISION}/(?P<path>.+)", "resolve")
    routes: ClassVar[list[Route]] = [*HubHandler.routes, *DatasetHandler.routes, bare]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer({"hf_...": "user", "my-name-token": "my-name"}) as server:
        server.RequestHandlerClass = PageHandler
        files = {path.name: path.read_bytes() for path in TINY_CLIP.iterdir()}
        server.create(documented.BASE).commit("main", files, "Upload model")
        siglip = tmp_path_factory.mktemp("siglip")
        make_model("siglip").save_pretrained(siglip)
        processor_of("siglip").save_pretrained(siglip)
        files = {path.name: path.read_bytes() for path in siglip.iterdir()}
        server.create("google/siglip2-base-patch16-224").commit("main", files, "Upload model")
        yield server
        assert server.unknown == server.storage.unknown == []


@pytest.fixture(scope="module")
def environment(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT / "tests" / "page_install"),
    }


@pytest.fixture(scope="module")
def stage(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's examples, photographs, and an adapter, as the pages take them for granted."""
    folder = tmp_path_factory.mktemp("stage") / "stage"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    images, labels = load_split("train")
    for digit, name in enumerate(CLASSES):
        own = [image for image, label in zip(images, labels, strict=True) if label == digit]
        for split, part in (("train", own[:24]), ("test", own[24:30])):
            target = folder / "photos" / split / name
            target.mkdir(parents=True)
            for number, image in enumerate(part):
                image.save(target / f"{number}.jpg")
    for name in ("holiday/a.jpg", "new-photos/a.jpg", "more/of/them/a.png", "photo.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images[0].save(folder / name)
    config = ANPromptConfig(class_names=list(CLASSES), template="a photo of a {}.")
    model = scatter(get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config).eval())
    model.save_pretrained(str(folder / "my-adapter"))
    settings = json.loads((folder / "my-adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = documented.BASE
    (folder / "my-adapter" / "adapter_config.json").write_text(json.dumps(settings))

    adapter = {path.name: path.read_bytes() for path in (folder / "my-adapter").iterdir() if path.suffix != ".md"}
    pets = hub.create("user/pets", private=True)
    pets.tags["v1"] = pets.commit("main", adapter, "Upload adapter").sha
    photos = {
        str(path.relative_to(folder / "photos")): path.read_bytes() for path in (folder / "photos").rglob("*.jpg")
    }
    hub.create("user/flowers").commit("main", photos, "Upload images")
    return folder


@pytest.fixture
def folder_of(stage: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a fresh working folder for a page."""

    def make(page: str) -> Path:
        folder = tmp_path / "work"
        shutil.copytree(stage, folder, symlinks=True)
        for split in ("train", "test"):
            for old, new in zip(CLASSES, CLASS_FOLDERS.get(page, CLASSES), strict=False):
                (folder / "photos" / split / old).rename(folder / "photos" / split / new)
        if page in CLASS_FOLDERS:
            shutil.rmtree(folder / "photos" / "train" / CLASSES[2])
            shutil.rmtree(folder / "photos" / "test" / CLASSES[2])
            write_table(folder)
        if page == "docs/publish.md":
            (folder / "classify.py").write_text("\n".join(loading_code()))
        return folder

    return make


def write_table(folder: Path) -> None:
    """The photographs as a parquet file."""
    from datasets import load_dataset

    (folder / "tables").mkdir()
    load_dataset("imagefolder", data_dir=str(folder / "photos"), split="train").to_parquet(
        folder / "tables" / "all.parquet"
    )


def loading_code() -> list[str]:
    """A script that loads what publish.md has loaded before it goes offline."""
    return [
        "import anprompt_peft",
        "from peft import AutoPeftModel",
        "print(AutoPeftModel.from_pretrained('user/pets').class_names)",
    ]


def is_run(command: str) -> bool:
    return not any(re.fullmatch(pattern, command) for pattern in NOT_RUN)


def shortened(command: str) -> str:
    """Ten epochs by default become one; few methods are compared, and few digits exported."""
    if command.startswith("python examples/digits/export_folder.py "):
        return f"{command} --limit 20"
    if re.match(r"anprompt compare ", command):
        return f"{command} --shots 2 --draws 2 --method linear-probe"
    training = r"anprompt train (?!.*--(epochs|config))|accelerate launch examples/train_accelerate\.py (?!.*--epochs)"
    return f"{command} --epochs 1" if re.match(training, command) else command


def is_program(block: Block) -> re.Match[str] | None:
    """A Python block that begins with a file name is that file."""
    return re.match(r"# (\w+\.py)\n", block.text)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in LONG_PAGES), id=page)
        for page in PAGES
        if read_blocks(page)
    ],
)
def test_the_page_runs_as_printed(
    page: str,
    folder_of: Callable[[str], Path],
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)  # the process that all others are forked from starts with these
    hidden = modules_of(documented.extras_of(page))[1]
    monkeypatch.setenv("HIDDEN_MODULES", ",".join(modules_of(set())[1]))
    documented.start_server()
    owner = {"my-name": "my-name-token"}.get(OWNERS.get(page, ""), "hf_...")
    folder = ROOT / "examples" if page.endswith(".ipynb") else folder_of(page)  # Jupyter starts beside the notebook
    logs = (tmp_path / f"{number}.log" for number in count())
    session: PythonSession | None = None
    printed, run = "", 0
    with ExitStack() as sessions:
        for block in read_blocks(page):
            text = block.text
            for (where, old), new in REPLACED.items():
                text = text.replace(old, new) if where == page else text
            if block.language == "python" and (program := is_program(block)):
                (folder / program[1]).write_text(text)
            elif block.language == "python":
                if any(where == page and mark in text for where, mark in NOT_RUN_PYTHON):
                    continue
                if session is None or page in SEPARATE:
                    assumed = ASSUMED.get(page, [])
                    session = PythonSession(folder, {"HF_TOKEN": owner}, hidden, assumed, next(logs))
                    sessions.enter_context(session)
                printed = session.run(text, block.where)
                run += 1
            elif block.language in SHELL:
                for command in filter(is_run, block.commands):
                    run_command(shortened(command), folder, {"HF_TOKEN": owner}, hidden, next(logs))
                    run += 1
    for expected in EXPECTED.get(page, []):
        assert expected in printed
    assert run or page in ONLY_STATIC, "nothing of this page was run"


# What the Python of a page prints.
EXPECTED = {
    "docs/index.md": ["trainable params", "eval_accuracy", "zero-shot: 0."],
    "examples/quickstart.ipynb": ["zero-shot CLIP: base ", "ANPrompt: base ", "a letter: "],
}
# Pages none of whose blocks can be run.
ONLY_STATIC = {
    "CONTRIBUTING.md", "docs/ablations.md", "docs/architecture.md", "docs/method.md", "examples/embedded/README.md",
    "examples/speed/README.md",
}  # fmt: skip


# --- the tables


def test_every_exception_is_needed() -> None:
    blocks = [block for page in PAGES for block in read_blocks(page)]
    commands = [command for block in blocks if block.language in SHELL for command in block.commands]
    unused: list[object] = [
        pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, command) for command in commands)
    ]
    text = {page: (ROOT / page).read_text() for page in PAGES}
    unused += [key for key in NOT_RUN_PYTHON if key[1] not in text.get(key[0], "")]
    unused += [key for key in REPLACED if key[1] not in text.get(key[0], "")]
    unused += [(page, name) for page, names in ASSUMED.items() for name in names if not uses(page, name)]
    unused += [page for table in (ASSUMED, CLASS_FOLDERS, OWNERS, EXPECTED) for page in table if page not in text]
    unused += [page for page in (*SEPARATE, *ONLY_STATIC) if page not in text]
    assert unused == []


def uses(page: str, name: str) -> bool:
    return any(re.search(rf"\b{name}\b", block.text) for block in read_blocks(page) if block.language == "python")


def test_no_other_language() -> None:
    known = {"python", "yaml", "mermaid", "bibtex", "text", *SHELL}
    assert {
        block.where: block.language for page in PAGES for block in read_blocks(page) if block.language not in known
    } == {}


# --- what a page installs


@cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("page", PAGES)
def test_installs(page: str) -> None:
    """Requirements are quoted so that a shell hands them over whole, and the extras of ours exist."""
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert documented.extras_of(page) <= set(extras)
    shell = [command for block in read_blocks(page) if block.language in SHELL for command in block.commands]
    inline = re.findall(r"`((?:python -m )?pip install [^`]+)`", (ROOT / page).read_text())
    for command in [*shell, *inline]:
        if not re.match(r"(python -m )?pip install ", command):
            continue
        words = iter(shlex.split(command, comments=True)[command.split().index("install") + 1 :])
        for word in words:
            if word in ("-c", "-r", "--constraint", "--requirement"):
                assert (ROOT / next(words)).is_file(), command
            elif not word.startswith("-") and not word.startswith("."):
                try:
                    Requirement(word)
                except InvalidRequirement as error:
                    pytest.fail(f"{page}: {command}\n{error}")


@pytest.mark.parametrize("page", PAGES)
def test_imports_are_installed(page: str) -> None:
    """Also those of blocks that are not run, and of the repository's scripts that the page calls."""
    there, absent = modules_of(documented.extras_of(page))
    missing = []
    for block in read_blocks(page):
        sources = [block.text] if block.language == "python" else []
        if block.language in SHELL:
            scripts = [ROOT / word for command in block.commands for word in command.split() if word.endswith(".py")]
            sources += [source for path in scripts if path.is_file() for source in documented.sources_of(path)]
        for source in sources:
            missing += [f"{block.where}: {name}" for name in documented.imports_of(source) if name in absent - there]
    assert missing == []


# --- what a page names


@pytest.mark.parametrize("page", PAGES)
def test_programs_files_and_options_exist(page: str) -> None:
    """For every command, run or not, and for the commands of `anprompt` in the text."""
    scripts = {script.name for script in entry_points(group="console_scripts")}
    text = (ROOT / page).read_text()
    shell = [command for block in read_blocks(page) if block.language in SHELL for command in block.commands]
    for command in [*shell, *re.findall(r"`((?:anprompt|python|accelerate launch|torchrun) [^`]+)`", text)]:
        words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
        assert words[0] in scripts | OTHER_PROGRAMS or words[0].startswith(".venv/bin/"), command
        for at, word in enumerate(words):
            if re.match(r"(examples|run)[\w/]*\.py$", word):
                assert (ROOT / word).is_file(), command
                known = "".join(source for source in documented.sources_of(ROOT / word))
                unknown = [each for each in options_of(" ".join(words[at:])) if f'"{each}"' not in known]
                assert unknown == [] or "HfArgumentParser" in known, command
        if words[0] == "anprompt":
            check_anprompt(words[1:], command)


def check_anprompt(words: list[str], command: str) -> None:
    """The subcommand and its options are those of the command line."""
    root = get_command(app)
    names = [word for word in words if not word.startswith("-")]
    options = {option for parameter in root.params for option in parameter.opts}
    if names and names[0] != "...":
        subcommand = getattr(root, "commands", {}).get(names[0])
        assert subcommand, f"no such command: {command}"
        for name in names[1:]:
            subcommand = getattr(subcommand, "commands", {}).get(name, subcommand)
        options |= {o for parameter in subcommand.params for o in (*parameter.opts, *parameter.secondary_opts)}
    assert set(options_of(shlex.join(words))) <= options | {"--help", "--install-completion"}, command


# --- links of the README


REPOSITORY = "https://github.com/anprompt-peft/anprompt_peft"
SITE = "https://anprompt-peft.github.io/anprompt_peft/"


def test_links_of_the_readme_work_on_the_package_index() -> None:
    """They are absolute, and those to this repository and its site lead to files that are there."""
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    for target in targets:
        where = target.partition("#")[0]
        if match := re.fullmatch(rf"{REPOSITORY}/(?:blob|tree|raw)/main/(.+)", where):
            assert (ROOT / match[1]).exists(), target
        elif where.startswith(SITE):
            name = where.removeprefix(SITE).strip("/") or "index"
            assert (ROOT / "docs" / f"{name}.md").is_file(), target
        else:
            assert not where.startswith(REPOSITORY.rpartition("/")[0]) or where == REPOSITORY, target


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/") and page != "README.md"])
def test_links_between_files(page: str) -> None:
    """Outside the site, whose links mkdocs checks."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not target.startswith(("https://", "#")):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


def test_the_stage_has_what_the_pages_name(stage: Path) -> None:
    with Image.open(stage / "photo.jpg") as image:
        assert image.size == (32, 32)
    assert len(list((stage / "photos" / "train").rglob("*.jpg"))) == 24 * len(CLASSES)
