"""PEFT's own tests of what all methods have in common, run by `test_peft.py` in a process of their own.

Nothing of PEFT's is copied here: the environment variable `PEFT_TESTS` names the folder `tests` of its source
distribution. The base model is `BASE`, from the Hub's cache.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from anprompt_peft import ANPromptConfig
from conftest import IMAGE_SIZE
from helpers import CLASSES

BASE = "user/clip"
SETTINGS = {"class_names": CLASSES, "text_layers": 2, "vision_layers": 2}

MERGED = "prompts change no weight, so there is nothing to merge"
GENERATES = "CLIP generates no text"
SUMMED = "adds adapters of LoRA or (IA)3"
HUB = "reads an adapter from the Hub"
NOT_APPLICABLE = {
    **dict.fromkeys(["merge_layers", "merge_layers_fp16", "merge_layers_is_idempotent", "merge_layers_multi"], MERGED),
    **dict.fromkeys(["merge_layers_nan", "safe_merge"], MERGED),
    **dict.fromkeys(["generate", "generate_half_prec", "generate_pos_args"], GENERATES),
    **dict.fromkeys(["weighted_combination_of_adapters_ia3", "weighted_combination_of_adapters_lora"], SUMMED),
    **dict.fromkeys(["from_pretrained", "from_pretrained_cache_dir", "save_pretrained_with_runtime_config"], HUB),
    "disable_adapter": "compares outputs as tensors, as generate() returns them",
    "passing_input_embeds_works": "CLIP takes no inputs_embeds",
    "valid_task_type": "none of PEFT's task classes fits CLIP's forward",
    "config_layers_to_transform_index_zero": "the method's own text_layers and vision_layers choose the layers",
}
PICKLED = pytest.mark.xfail(strict=True, raises=ValueError, reason="no pickle is written, for loading refuses it")
EXCEPTIONS = {
    "save_pretrained_as_pickle": PICKLED,
    "save_pretrained_selected_adapters_as_pickle": PICKLED,
    "from_pretrained_config_construction": pytest.mark.xfail(
        strict=True,
        raises=AssertionError,
        reason="an adapter has a configuration of its own, and not the caller's object",
    ),
}
IMAGES_ALONE = {"test_training", "test_training_gradient_checkpointing"}
"""Their gradients reach the image prototype, which scores of given texts leave out."""

FOLDER = Path(os.environ["PEFT_TESTS"])
sys.path.insert(0, str(FOLDER.parent))
diffusers: Any = ModuleType("diffusers")  # not installed here; the tests name a class of it
diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
sys.modules["diffusers"] = diffusers
Common: Any = importlib.import_module(f"{FOLDER.name}.testing_common").PeftCommonTester
Config: Any = importlib.import_module(f"{FOLDER.name}.test_config").TestPeftConfig
importlib.import_module(f"{FOLDER.name}.testing_utils")._HUB_MODEL_ACCESSES[BASE] = 1  # it is in the cache


def marked(name: str, function: Any) -> Any:
    """One of PEFT's tests, if need be with the reason why it does not run or must fail."""
    if name in NOT_APPLICABLE:
        return pytest.mark.skip(reason=NOT_APPLICABLE[name])(function)
    return EXCEPTIONS[name](function) if name in EXCEPTIONS else function


class TestCommon(Common):
    """What PEFT's suites for the different kinds of model share."""

    transformers_class = CLIPModel

    @pytest.fixture(autouse=True)
    def _inputs(self, request: pytest.FixtureRequest) -> None:
        pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
        self.inputs = {"pixel_values": pixels}
        if request.node.originalname not in IMAGES_ALONE:
            self.inputs["input_ids"] = torch.tensor([[1, 5, 2], [1, 6, 2]])

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        return dict(self.inputs)

    @pytest.fixture
    def model_id(self) -> str:
        return BASE

    @pytest.fixture
    def config_cls(self) -> type[ANPromptConfig]:
        return ANPromptConfig

    @pytest.fixture
    def config_kwargs(self) -> dict[str, Any]:
        return dict(SETTINGS)

    @pytest.fixture(params=[torch.float16, torch.bfloat16])
    def dtype(self, request: pytest.FixtureRequest) -> torch.dtype:
        return request.param

    @EXCEPTIONS["save_pretrained_as_pickle"]
    def test_save_pretrained_as_pickle(self, model_id: str, config_cls: Any, config_kwargs: dict[str, Any]) -> None:
        self._test_save_pretrained(model_id, config_cls, config_kwargs, safe_serialization=False)

    @EXCEPTIONS["save_pretrained_selected_adapters_as_pickle"]
    def test_save_pretrained_selected_adapters_as_pickle(
        self, model_id: str, config_cls: Any, config_kwargs: dict[str, Any]
    ) -> None:
        self._test_save_pretrained_selected_adapters(model_id, config_cls, config_kwargs, safe_serialization=False)


for name, function in vars(Common).items():
    if name.startswith("_test_"):
        setattr(TestCommon, name[1:], marked(name.removeprefix("_test_"), function))


class TestConfig:
    """What PEFT repeats for the configuration of each method."""


for name, function in vars(Config).items():
    marks = getattr(function, "pytestmark", [])
    if any(mark.args[0] == "config_class, mandatory_kwargs" for mark in marks):
        function.pytestmark = [mark for mark in marks if mark.args[0] != "config_class, mandatory_kwargs"]
        each = pytest.mark.parametrize(("config_class", "mandatory_kwargs"), [(ANPromptConfig, SETTINGS)])
        setattr(TestConfig, name, marked(name.removeprefix("test_"), each(function)))
