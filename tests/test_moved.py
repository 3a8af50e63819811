"""Import paths of version 0.1.0 stay valid, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from anprompt_peft.moved import MOVED, keep_old_paths

OLD = [
    "card", "checkpoint", "classes", "clip", "config", "data", "distributed", "evaluation", "export", "facts",
    "features", "fingerprint", "hub", "images", "layer", "losses", "model", "names", "noise", "perturb", "prediction",
    "provenance", "registration", "repeatable", "report.collect", "report.curves", "report.data", "report.page",
    "report.plane", "report.tables", "sampling", "training", "transform",
]  # fmt: skip

DOCUMENTED = {
    "checkpoint": "keep_adapter_only newest save_newest",
    "data": "class_names_of few_shot load_image_data select_classes split_data",
    "distributed": "refuse_weight_sharding SHARD_FROM",
    "evaluation": "BaseToNew base_to_new",
    "export": "export_onnx",
    "hub": "CardCallback push_folder",
    "images": "check_images",
    "names": "halves",
    "prediction": "predict",
    "provenance": "provenance to_json whole_folder",
    "report": "ReportData describe_adapter predict read_geometry write_report",
    "sampling": "ShotsError sample_shots",
    "training": "ANPromptTrainer ANPromptTrainingArguments accuracy warmup_cosine",
    "transform": "ClipTransform",
}


@pytest.mark.parametrize("path", OLD)
def test_every_module_of_0_1_0_can_be_imported(path: str) -> None:
    module = import_module(f"anprompt_peft.{path}")
    assert module.__name__ == MOVED.get(f"anprompt_peft.{path}", f"anprompt_peft.{path}")


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_very_module_that_took_its_place(old: str) -> None:
    """Not a second copy, whose classes would fail `isinstance`; and the module keeps its own name and spec."""
    module, new = import_module(old), import_module(MOVED[old])
    assert module is new
    assert sys.modules[old] is new
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__ == MOVED[old]


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_names_are_where_0_1_0_had_them(path: str) -> None:
    module = import_module(f"anprompt_peft.{path}")
    assert [name for name in DOCUMENTED[path].split() if not hasattr(module, name)] == []


def test_other_paths_are_still_missing() -> None:
    keep_old_paths()
    with pytest.raises(ModuleNotFoundError, match=r"anprompt_peft\.nothing"):
        import_module("anprompt_peft.nothing")


def test_a_fresh_process_imports_little_and_finds_old_paths() -> None:
    """scikit-learn takes a second and 120 MB; only the one function that clusters needs it."""
    heavy = ("sklearn", "datasets", "onnx", "onnxruntime", "matplotlib")
    program = f"""
import sys, peft
from transformers import CLIPModel
theirs = set(sys.modules)
import anprompt_peft
print([name for name in {heavy} if name in sys.modules.keys() - theirs])
from anprompt_peft.names import halves
import anprompt_peft.data.names
print(halves is anprompt_peft.data.names.halves)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "True"]
