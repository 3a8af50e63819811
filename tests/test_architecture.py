"""The order of the rooms: who may import whom, how long the method may be, and how many places a change touches."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "anprompt_peft"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem not in {"__init__"})
MAY_IMPORT = {
    "method": set(),
    "extras": set(),
    "files": set(),
    "patches": set(),
    "text": set(),
    "termination": set(),
    "provenance": set(),
    "anchored": {"method"},
    "fast": {"method", "anchored", "files"},
    "clip": {"method", "anchored", "fast"},
    "publish": {"method", "files", "patches", "text"},
    "denoising": {"method", "publish", "files", "provenance"},
    "tuner": {"method", "fast", "clip", "publish", "denoising", "files", "patches"},
    "trust": {"method", "fast", "publish", "denoising", "tuner", "files", "patches"},
    "data": {"method", "files", "text"},
    "training": {"method", "fast", "clip", "publish", "tuner", "data", "extras", "files", "text"},
    "evaluation": {
        "method",
        "anchored",
        "clip",
        "denoising",
        "tuner",
        "data",
        "training",
        "files",
        "provenance",
        "termination",
        "text",
    },
    "classifier": {"method", "evaluation", "publish", "files"},
    "compare": {"classifier", "data", "evaluation", "publish", "report", "files", "text"},
    "serve": {"method", "classifier", "fast", "clip", "tuner", "data", "report", "extras", "files", "provenance"},
    "report": {"tuner", "evaluation", "publish", "files", "text"},
    "__main__": set(),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules of the package that a module imports, as dotted names within it, with the imported names."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            yield ".".join([*base, *(node.module or "").split(".")]).strip("."), [each.name for each in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    others = {module.split(".")[0] for module, _ in imports(path) if module} - {room}
    assert others <= MAY_IMPORT[room]


def test_the_order_has_no_circle() -> None:
    done: set[str] = set()
    while rest := set(MAY_IMPORT) - done:
        ready = {room for room in rest if MAY_IMPORT[room] <= done}
        assert ready, f"a circle among {rest}"
        done |= ready


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_uses_anothers_private_names(path: Path) -> None:
    for module, names in imports(path):
        assert not [name for name in names if name.startswith("_")], module


def test_the_method_can_be_read_in_one_sitting() -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "method").glob("*.py"))
    assert lines < 1975


def test_imports_load_nothing_that_only_some_need(tmp_path: Path) -> None:
    """Nor does what writes no report load matplotlib; and no chart touches pyplot and its open figures."""
    heavy = ("sklearn", "datasets", "pydantic", "typer", "matplotlib", "onnx")
    program = f"""
import sys, peft
from transformers import CLIPModel
theirs = set(sys.modules)  # older releases of transformers import scikit-learn
import anprompt_peft
print([name for name in {heavy} if name in sys.modules.keys() - theirs])
import anprompt_cli.jobs.benchmark, anprompt_cli.jobs.evaluate, anprompt_cli.jobs.train
from anprompt_peft.report import ReportData, write_report
print("matplotlib" in sys.modules)
write_report(ReportData("t", history=[{{"loss": 1.0, "epoch": 1}}]), {str(tmp_path / "report.html")!r})
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False", "True", "False"]


PLACES = {
    "a loss term": (
        {"waloss", "waloss_weight"},
        {"method/config.py: ANPromptConfig.waloss_weight", "method/losses.py: loss_terms", "method/losses.py: waloss"},
    ),
    "a kind of logits": (
        {"logits_prototype"},
        {
            "clip.py: ANPromptOutput.logits_prototype",
            "method/losses.py: Scores.logits_prototype",
            "method/losses.py: loss_terms",
            "method/losses.py: score",
        },
    ),
    "a saved tensor": (
        {"anprompt_update"},
        {
            f"method/layer.py: ANPromptLayer.{each}"
            for each in ("__init__", "adapter_layer_names", "update", "update_layer")
        },
    ),
    "a baseline": ({"ProLIP"}, {"evaluation/peers/prolip.py: ProLIP", "compare/methods.py: COMPARED"}),
    "an option of train": (
        {"shots_up_to"},
        {
            "anprompt_cli/train.py: TrainOptions.shots_up_to",
            "anprompt_cli/train.py: _check",
            "anprompt_cli/jobs/draw.py: draw_images",
            "anprompt_cli/jobs/train.py: _facts",
        },
    ),
}
"""By kind of change, an example: its names, and the definitions that mention them."""


def definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Functions, assignments and members of classes of a module, with their names."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, ast.Constant(node.name)
            yield from ((f"{node.name}.{name}", part) for name, part in named(node.body))
        else:
            yield from named([node])


def named(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for part in body:
        match part:
            case (
                ast.FunctionDef(name=name)
                | ast.Assign(targets=[ast.Name(id=name)])
                | ast.AnnAssign(target=ast.Name(id=name))
            ):
                yield name, part


def mentioned(node: ast.AST) -> Iterator[str]:
    """Names and texts in a definition, but in what it documents."""
    for each in ast.walk(node):
        match each:
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.arg(arg=name)
                | ast.keyword(arg=str(name))
                | ast.FunctionDef(name=name)
                | ast.Constant(value=str(name))
            ):
                yield name


@pytest.mark.parametrize("change", PLACES)
def test_a_change_touches_these_places(change: str) -> None:
    names, expected = PLACES[change]
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "anprompt_cli").rglob("*.py")]
    found = {
        f"{path.relative_to(PACKAGE.parent).as_posix().removeprefix('anprompt_peft/')}: {label}"
        for path in paths
        for label, node in definitions(path)
        if names & {*mentioned(node)}
    }
    assert found == expected
