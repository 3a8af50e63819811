"""The files around the code: workflows, metadata, Makefile, pre-commit."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import anprompt_peft
from anprompt_peft.extras import extra

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ID_TOKEN_JOBS = {("docs.yml", "deploy"), ("publish.yml", "publish")}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def load_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_yaml_is_valid() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) >= 10
    assert [path.name for path in files if not isinstance(load(path), dict)] == []


def test_actions_are_pinned() -> None:
    """By a full commit hash, with the version beside it, and one hash per action."""
    pins: dict[str, str] = {}
    for path in WORKFLOWS:
        uses = re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text(), re.MULTILINE)
        steps = [step["uses"] for job in load(path)["jobs"].values() for step in job["steps"] if "uses" in step]
        assert steps == [use.partition(" #")[0] for use in uses] != []
        for use in uses:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
            action, _, pin = use.partition("@")
            assert pins.setdefault(action, pin) == pin


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_least_permissions(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        granted = job.get("permissions", {})
        assert ("id-token" in granted) == ((path.name, name) in ID_TOKEN_JOBS)
        assert set(granted) <= {"id-token", "pages"}
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "github.event" not in step.get("run", "")


def test_publishing_is_trusted_and_attested() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "publish.yml")
    job = workflow["jobs"]["publish"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    assert job["needs"] == "build"
    assert job["environment"]["name"] == "pypi"
    (publish,) = [step for step in job["steps"] if step["uses"].startswith("pypa/gh-action-pypi-publish@")]
    assert publish["with"] == {"attestations": True}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "publish.yml").read_text()


def test_versions_are_tested() -> None:
    """Every Python of the classifiers, with the files of versions that exist."""
    declared = {name.rpartition(" ")[2] for name in load_project()["classifiers"] if re.search(r":: 3\.\d+$", name)}
    jobs = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    tested = {row["python"] for row in jobs["tests"]["strategy"]["matrix"]["include"]}
    tested |= {step["with"]["python-version"] for step in jobs["pinned"]["steps"] if "setup-python" in str(step)}
    assert declared == tested
    text = "".join(path.read_text() for path in WORKFLOWS)
    files = set(re.findall(r"constraints[\w-]*\.txt", text))
    assert files == {"constraints.txt", "constraints-lowest.txt"}
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_citation_is_of_this_version() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == anprompt_peft.__version__
    assert citation["license"] == load_project()["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gao", "Zheng", "Wang"]
    assert paper["url"].endswith("2508.04677")
    assert f"## {anprompt_peft.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_fit_the_lower_bounds() -> None:
    """Each requirement of pyproject.toml allows the version of constraints.txt, if that file pins it."""
    project = load_project()
    wanted = [Requirement(text) for text in project["dependencies"]]
    wanted += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    for name in ("constraints.txt", "constraints-lowest.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
        pins = {canonicalize_name(package): version.split(";")[0].strip() for package, version in pins.items()}
        refused = [
            str(each)
            for each in wanted
            if (pin := pins.get(canonicalize_name(each.name))) and Version(pin) not in each.specifier
        ]
        assert refused == [], name


def test_optional_packages_are_told_with_their_extra() -> None:
    """Wherever the package or an example imports one, a missing one names the extra that has it."""
    extras: dict[str, Any] = load_project()["optional-dependencies"]
    modules = {
        name: {Requirement(each).name.lower() for each in extras[name] if "anprompt-peft" not in each}
        for name in ("onnx", "serve", "examples", "embedded", "ray")
    }
    optional = set.union(*modules.values()) - {"scipy"}  # of the core as well
    for path in (*(ROOT / "examples").rglob("*.py"), *(ROOT / "anprompt_peft").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told: dict[str, str] = {}
        for block in (node for node in ast.walk(tree) if isinstance(node, ast.With)):
            call = ast.unparse(block.items[0].context_expr)
            told |= {name: call for each in block.body for name in imported(each)}
        for module in {name for node in ast.walk(tree) for name in imported(node)} & optional:
            named = {f"extra('{name}')" for name, have in modules.items() if module in have}
            assert told.get(module, "") in named, path


def imported(node: ast.AST) -> list[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return [each.name.split(".")[0] for each in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def test_a_missing_package_is_told_with_its_extra() -> None:
    wanted = r"This needs nowhere_at_all, .* pip install 'anprompt-peft\[serve\]'"
    with pytest.raises(ModuleNotFoundError, match=wanted), extra("serve"):
        importlib.import_module("nowhere_at_all.sub")


def test_makefile() -> None:
    """Every target is phony and explained; those of `make -n` need no installation."""
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", text, re.MULTILINE)
    assert set(targets) >= {"help", "install", "lint", "types", "test", "slow", "docs", "digits", "clean"}
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert phony[1].split() == targets == re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE)
    if shutil.which("make") is None:
        pytest.skip("no make")
    shown = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python3 run.py test" in shown
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == targets


def test_hooks_use_the_project_s_own_versions() -> None:
    local, *others = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    tools = [hook["entry"].split()[2] for hook in local["hooks"]]
    assert tools == ["ruff", "ruff", "mypy"]
    assert all(hook["language"] == "system" for hook in local["hooks"])
    assert all(re.fullmatch(r"[0-9a-f]{40}", repo["rev"]) for repo in others)


def test_the_package_describes_itself() -> None:
    project = load_project()
    assert set(project["urls"]) == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert all(url.startswith("https://") for url in project["urls"].values())
    (site,) = re.findall(r"^site_description: (.*)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert not re.search(r"(?i)noise.robust|robust to noise", project["description"] + site)
