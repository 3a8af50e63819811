"""Adapters that others made: what is refused, at every method that loads one, and that a refusal changes nothing."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModel,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPModel, CLIPProcessor, CLIPTokenizer

from anprompt_cli import main
from anprompt_cli.jobs import models
from anprompt_peft import ANPromptConfig, TrainingFacts
from anprompt_peft.method.class_texts import end_of_text_positions
from anprompt_peft.publish import push_folder
from anprompt_peft.trust.fields import check_attributes
from anprompt_peft.trust.tensors import PREFIX, expected_tensors
from fuzz_adapters import Fuzzer, Snapshot, fuzz
from helpers import CLASSES, adapted, assert_same, logits, make_clip, make_config, needs_add_adapter

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HEAD = f"{PREFIX}visual_projection."
IDS, TOKENS = f"{HEAD}anprompt_class_ids", f"{HEAD}anprompt_tokens"
PATCHES = f"{PREFIX}vision_model.embeddings.patch_embedding.weight"

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sound(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that loads, with a few class texts of two templates."""
    templates: Any = {"template": ["a photo of a {}.", "the {}."], "tokenizer_name_or_path": None}
    folder = tmp_path_factory.mktemp("sound")
    adapted(CLIPModel.from_pretrained(clip_folder), **templates).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(sound, tmp_path / "broken"))


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of a saved configuration."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def retensor(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors of a saved adapter."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


# the methods that load


def first(clip: CLIPModel, sound: Path) -> Any:
    return clip


def second(clip: CLIPModel, sound: Path) -> Any:
    return PeftModel.from_pretrained(clip, sound, "one", is_trainable=True)


def native(clip: CLIPModel, sound: Path) -> Any:
    clip.load_adapter(str(sound), adapter_name="one")
    return clip


def as_dict(model: Any, folder: Path) -> None:
    config = PeftConfig.from_pretrained(str(folder))
    model.load_adapter(peft_config=config, adapter_state_dict=load_file(folder / WEIGHTS))


LOADS: dict[str, tuple[Any, Any]] = {
    "PeftModel.from_pretrained": (first, lambda model, folder: PeftModel.from_pretrained(model, folder)),
    "PeftModel.load_adapter": (second, lambda model, folder: model.load_adapter(folder, "two")),
    "PeftModel.load_adapter, same name": (second, lambda model, folder: model.load_adapter(folder, "one")),
    "CLIPModel.load_adapter": (first, lambda model, folder: model.load_adapter(str(folder))),
    "CLIPModel.load_adapter, second": (native, lambda model, folder: model.load_adapter(str(folder), "two")),
    "CLIPModel.load_adapter, state dict": (first, as_dict),
}


def marked(*without: str) -> list[Any]:
    """The loading but some, each where the installed PEFT and transformers have it."""
    names = [name for name in LOADS if not any(name.endswith(each) for each in without)]
    return [pytest.param(name, marks=needs_add_adapter if name.startswith("CLIP") else ()) for name in names]


ALL_LOADS = marked()
WITH_FILES = marked("state dict")
READING_CONFIGS = marked("same name")


def refusals(
    method: str, clip: CLIPModel, sound: Path, folder: Path, cases: Iterable[tuple[Callable[[], Any], str]]
) -> None:
    """Break an adapter in each way; loading it must be refused and leave one and the same model as it was."""
    prepare, load = LOADS[method]
    model = prepare(clip.train(), sound)
    before, answers = Snapshot(model), _answers(model)
    found: list[tuple[str, str]] = []
    for change, message in cases:
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        change()
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - all messages are compared below
            load(model, folder)
        found.append((message, str(caught.value)))
        assert before.same(full=True), message
        assert all(map(torch.equal, answers, _answers(model))), message
    assert not [pair for pair in found if not re.search(*pair)]
    if isinstance(model, PeftModel):
        assert list(model.peft_config) == model.active_adapters == ["one"]
    load(model, sound)


def _answers(model: Any) -> list[Tensor]:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        features = model.get_image_features(pixels).pooler_output
        return [features, *([logits(model, pixels)] if hasattr(model, "anprompt_state") else [])]


# tensors


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"projection_rank": 2, "text_update_rank": 3, "prototype_rank": 3, "latent_dim": 40, "noise_map": "learned"},
        {"projection_rank": 2, "latent_dim": 40, "noise_map": "fixed"},
        {"num_noise_tokens": 5, "noise_integration": "add", "text_layers": [1, 3], "vision_layers": [5]},
        {"num_noise_tokens": 0, "latent_dim": 7, "noise_map": "learned"},
        {"num_virtual_tokens": 0, "template": ["a {}", "the {}", "{}"]},
        {"num_virtual_tokens": 0, "num_noise_tokens": 0},
        {"num_virtual_tokens": 0, "num_noise_tokens": 0, "vision_lora_rank": 3, "text_lora_rank": 2},
    ],
    ids=str,
)
def test_the_table_of_tensors_is_what_adapters_save(settings: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(**settings)
    model.save_pretrained(tmp_path)
    saved = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    table = expected_tensors(model.peft_config["default"], model.config)
    assert saved == {PREFIX + name: shape for name, shape in table.items()}
    PeftModel.from_pretrained(make_clip(), tmp_path)


def _set(name: str, value: float, at: Any = 0) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].view(-1).__setitem__(at, value)


def _copy_class(tensors: Tensors) -> None:
    tensors[IDS][4:6] = tensors[IDS][0:2]
    tensors[IDS][4, -1] -= 1  # behind the end of the text, where CLIP does not look


BAD_TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "base": (
        lambda each: each.update({PATCHES: torch.zeros(48, 3, 8, 8)}),
        r"no adapter of its configuration has.*patch",
    ),
    "base, no prefix": (lambda each: each.update(logit_scale=torch.zeros(())), "has: .'logit_scale'"),
    "layer's base": (
        lambda each: each.update({f"{HEAD}base_layer.weight": torch.zeros(24, 48)}),
        "has: .*base_layer.weight",
    ),
    "of another adapter": (lambda each: each.update({f"{TOKENS}.one": torch.zeros(5, 24)}), "tokens.one"),
    "twice": (lambda each: each.update({TOKENS.removeprefix(PREFIX): each[TOKENS].clone()}), "anprompt_tokens"),
    "missing": (lambda each: each.pop(TOKENS), "missing: .*anprompt_tokens"),
    "all missing": (lambda each: each.clear(), "missing: .* and 17 more"),
    "shape": (lambda each: each.update({TOKENS: torch.zeros(5, 25)}), r"\[5, 25\], and \[5, 24\] is needed"),
    "broadcast": (lambda each: each.update({TOKENS: torch.zeros(1, 24)}), r"\[1, 24\], and \[5, 24\] is needed"),
    "integers": (lambda each: each.update({TOKENS: torch.zeros(5, 24).int()}), "type (I32|torch.int32)"),
    "ids as floats": (lambda each: each.update({IDS: each[IDS].float()}), "type F32"),
    "NaN": (_set(TOKENS, float("nan"), 7), "anprompt_tokens is not finite"),
    "infinity": (_set(f"{HEAD}anprompt_clean_features", float("-inf")), "clean_features is not finite"),
    "too large for the model": (
        lambda each: each.update({TOKENS: torch.full((5, 24), 1e300, dtype=torch.float64)}),
        "not finite in torch.float32",
    ),
    "id too large": (_set(IDS, 10**6), r"ids of the class texts of \['cat'\] lie outside the vocabulary"),
    "negative id": (lambda each: each[IDS][5].fill_(-1), r"texts of \['small fish'\] lie outside"),
    "no end of text": (lambda each: each[IDS][2].fill_(5), r"texts of \['dog'\] have no end-of-text token"),
    "equal classes": (_copy_class, r"\[\['cat', 'small fish'\]\] are the same tokens"),
}


@pytest.mark.parametrize("method", ALL_LOADS)
def test_only_the_adapters_own_sound_tensors_are_loaded(method: str, sound: Path, broken: Path) -> None:
    cases = [(partial(retensor, broken, change), message) for change, message in BAD_TENSORS.values()]
    refusals(method, make_clip(), sound, broken, cases)


@pytest.mark.parametrize("method", WITH_FILES)
def test_files_that_are_not_whole_are_refused(method: str, sound: Path, broken: Path) -> None:
    content = (broken / WEIGHTS).read_bytes()
    files = (content[: len(content) // 2], b"\xff" * 16, b"")
    cases = [(partial((broken / WEIGHTS).write_bytes, each), "not a whole safetensors file") for each in files]
    refusals(method, make_clip(), sound, broken, cases)


def test_a_header_is_compared_before_any_value_is_read(broken: Path) -> None:
    """Sixteen billion values in a sparse file would take longer than the test may."""
    header = json.dumps({TOKENS: {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}).encode()
    with (broken / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**36)
    with pytest.raises(ValueError, match="missing: "):
        PeftModel.from_pretrained(make_clip(), broken)


def test_ends_of_text_by_the_old_rule(broken: Path) -> None:
    """CLIPs with `eos_token_id` 2 in their configuration pool at the highest id."""
    clip = make_clip(eos_token_id=2)
    config = make_config(template=["a photo of a {}.", "the {}."])
    get_peft_model(clip, config).save_pretrained(str(broken))
    PeftModel.from_pretrained(make_clip(eos_token_id=2), broken)
    assert int(end_of_text_positions(load_file(broken / WEIGHTS)[IDS], clip.config).min()) > 0
    retensor(broken, lambda each: each[IDS][2].fill_(5))
    with pytest.raises(ValueError, match=r"texts of \['dog'\] have no end-of-text"):
        PeftModel.from_pretrained(make_clip(eos_token_id=2), broken)


@pytest.mark.parametrize("method", WITH_FILES)
def test_a_load_that_breaks_off_leaves_the_model_as_it_was(
    method: str, sound: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails after the checks: here the reading of the weights, once everything is built."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    prepare, load = LOADS[method]
    model = prepare(make_clip().train(), sound)
    before, answers = Snapshot(model), _answers(model)
    monkeypatch.setattr("peft.peft_model.load_peft_weights", fail)
    monkeypatch.setattr(CLIPModel, "_load_pretrained_model", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        load(model, broken)
    assert before.same(full=True)
    assert all(map(torch.equal, answers, _answers(model)))


# weights that come into a model that is there already


INTO_AN_ADAPTER: dict[str, Callable[[Any, Path], Any]] = {
    "load_adapter": lambda model, folder: model.load_adapter(folder, "default"),
    "its weights": lambda model, folder: set_peft_model_state_dict(model, load_peft_weights(str(folder))),
    "mismatched sizes": lambda model, folder: model.load_adapter(folder, "default", ignore_mismatched_sizes=True),
    "torch": lambda model, folder: model.load_state_dict(torch.load(folder / "whole.pt")),
    "base model": lambda model, folder: model.get_base_model().load_state_dict(torch.load(folder / "base.pt")),
}


def save_in_all_ways(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "whole.pt")
    torch.save(model.get_base_model().state_dict(), folder / "base.pt")


@pytest.mark.parametrize("way", INTO_AN_ADAPTER)
@pytest.mark.parametrize(
    "names", [["ship", "truck", "car"], CLASSES[::-1], ["ship", "truck"]], ids=["other", "order", "number"]
)
def test_weights_of_other_classes_are_refused(names: list[str], way: str, tmp_path: Path) -> None:
    save_in_all_ways(adapted(class_names=names), tmp_path)
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="under another adapter_name") as raised:
        INTO_AN_ADAPTER[way](model, tmp_path)
    assert str(CLASSES) in str(raised.value)
    if "load_adapter" in way or "sizes" in way:
        assert str(names) in str(raised.value)
    assert_same(model.state_dict(), before)
    assert model.class_names == CLASSES


@pytest.mark.parametrize("way", INTO_AN_ADAPTER)
def test_weights_of_the_same_classes_are_loaded(way: str, tmp_path: Path, pixels: Tensor) -> None:
    other, model = adapted(), adapted(scattered=False)
    save_in_all_ways(other, tmp_path)
    INTO_AN_ADAPTER[way](model, tmp_path)
    assert torch.equal(logits(model, pixels), logits(other, pixels))


def test_other_settings_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted(alpha=0.5).save_pretrained(tmp_path)
    adapted().load_adapter(tmp_path, "default")
    assert "alpha=0.7 and 0.5" in caplog.text
    with pytest.raises(ValueError, match=r"configured otherwise: text_layers=\[4\] and \[3, 4\]; alpha=0.7 and 0.5"):
        adapted(text_layers=1).load_adapter(tmp_path, "default")


def test_weights_for_more_classes_than_the_configuration_names(broken: Path) -> None:
    edit(broken, class_names=CLASSES[:2])
    with pytest.raises(ValueError, match=r"hold 6 class texts, and its configuration has 4: for class_names"):
        PeftModel.from_pretrained(make_clip(), broken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_adapters_own_clip_needs_no_warning(
    dtype: torch.dtype, sound: Path, recwarn: pytest.WarningsRecorder
) -> None:
    PeftModel.from_pretrained(make_clip(dtype=dtype), sound)
    assert not [each for each in recwarn if "trained with" in str(each.message)]


ANOTHER_CLIP: dict[str, Callable[[CLIPModel, str], Any]] = {
    "from_pretrained": lambda clip, folder: PeftModel.from_pretrained(clip, folder),
    "load_adapter": lambda clip, folder: adapted(clip).load_adapter(folder, "b"),
    "native": lambda clip, folder: clip.load_adapter(folder),
}


@pytest.mark.parametrize("method", [*[*ANOTHER_CLIP][:2], pytest.param("native", marks=needs_add_adapter)])
def test_warns_of_another_clip_of_the_same_shape(method: str, sound: Path) -> None:
    told = r"This CLIP is not the one .* a cosine of -?0\.\d\d, and not 1\. Load .*clip"
    with pytest.warns(UserWarning, match=told):
        ANOTHER_CLIP[method](make_clip(seed=1), str(sound))


# configurations


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"class_names": 5}, "class_names=5 in an adapter's configuration must be of type list"),
    ({"class_names": ["cat", 2, "dog"]}, "class_names="),
    ({"class_names": "cat"}, "class_names="),
    ({"class_names": ["cat", "dog", "\ud800"]}, "class_names holds half a character"),
    ({"class_names": [*CLASSES, "one more"]}, "class_names"),
    ({"descriptions": "a sentence"}, "descriptions='a sentence'"),
    ({"descriptions": {"cat": 1}}, "descriptions="),
    ({"template": 7}, "template=7"),
    ({"noise_source": 3}, "noise_source=3"),
    ({"noise_map": "free"}, r"noise_map='free' in an adapter's configuration is not one of \['fixed', 'learned'\]"),
    ({"noise_source": ["text", 3]}, "noise_source="),
    ({"text_layers": "last"}, "text_layers="),
    ({"text_layers": [3, 99]}, "text_layers=99"),
    ({"vision_layers": 2.5}, "vision_layers="),
    ({"alpha": "high"}, "alpha="),
    ({"alpha": 10**400}, "alpha holds a number of more than 64 bits"),
    ({"alpha": float("nan")}, "alpha=nan"),
    ({"noise_seed": 2**63}, "noise_seed holds a number of more than 64 bits"),
    ({"num_virtual_tokens": 10**7}, "num_virtual_tokens=10000000 is more than this package handles"),
    ({"num_noise_tokens": 10**7}, "num_noise_tokens=10000000 is more than"),
    ({"latent_dim": 10**9}, "latent_dim=1000000000 is more than"),
    ({"noise_draws": 10**6}, "noise_draws=1000000 is more than"),
    ({"num_virtual_tokens": 900}, r"\[5, 24\], and \[900, 24\] is needed"),
    ({"latent_dim": 60000}, "60000. is needed"),
    ({"template": [f"{{}} {number}" for number in range(5000)]}, "its configuration has 15000"),
    ({"revision": 5}, "revision=5"),
    ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path="),
    ({"tokenizer_name_or_path": {"name": 1}}, "tokenizer_name_or_path="),
    ({"classifier_weight": "much"}, "classifier_weight="),
    ({"classifier_weight": -1.0}, "classifier_weight=-1.0 must be a finite number, at least 0"),
    ({"classifier_strength": 0.1}, "Tensors missing: .*anprompt_classifier"),
    ({"inference_mode": "yes"}, "inference_mode="),
    ({"auto_mapping": "transformers"}, "auto_mapping="),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' does not apply"),
    ({"format_version": 5}, "format_version=5: a newer version .* Upgrade it: pip install"),
    ({"format_version": "1"}, "format_version='1' must be an integer"),
    ({"format_version": True}, "format_version=True must be an integer, at least 1"),
    ({"peft_type": None}, "peft_type=None is not a method"),
    ({"peft_type": ["ANPROMPT"]}, r"peft_type=\['ANPROMPT'\] is not a method"),
    ({"peft_type": "UNHEARD"}, "peft_type='UNHEARD' is not a method"),
    ({"training_facts": "good"}, "training_facts='good'"),
    ({"training_facts": {"arguments": json.loads("[" * 20 + "]" * 20)}}, "training_facts is nested more than 16"),
    ({"training_facts": {"training_data": "\udfff"}}, "training_facts holds half a character"),
]


@pytest.mark.parametrize("method", READING_CONFIGS)
def test_wrong_fields_are_named(method: str, sound: Path, broken: Path) -> None:
    cases = [(partial(edit, broken, **fields), message) for fields, message in BAD_FIELDS]
    refusals(method, make_clip(), sound, broken, cases)


@pytest.mark.parametrize(
    "text", ["[]", "5", '{"alpha":', '{"alpha":' + "[" * 10**5, "\x00", '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_json_object_is_refused(text: str, broken: Path) -> None:
    (broken / CONFIG).write_text(text)
    clip = make_clip()
    before = Snapshot(clip)
    for load in (PeftModel.from_pretrained, lambda _, folder: PeftConfig.from_pretrained(str(folder))):
        with pytest.raises(ValueError, match=CONFIG):
            load(clip, broken)
    assert before.same(full=True)
    assert main(["info", str(broken)]) == 2


@pytest.mark.parametrize("method", READING_CONFIGS)
@pytest.mark.parametrize("text", ["{}", '{"foo": "bar", "baz": 123}'])
def test_a_json_file_without_a_method_is_a_type_error(text: str, method: str, sound: Path, broken: Path) -> None:
    """As PEFT says it, of the class that was asked to read it."""
    (broken / CONFIG).write_text(text)
    prepare, load = LOADS[method]
    model = prepare(make_clip(), sound)
    message = "The {} config that is trying to be loaded is missing required keys: {{'peft_type'}}. {} is no"
    with pytest.raises(TypeError, match=re.escape(message.format("PeftConfig", broken / CONFIG))):
        load(model, broken)
    for config in (ANPromptConfig, LoraConfig):
        with pytest.raises(TypeError, match=re.escape(message.format(config.__name__, broken / CONFIG))):
            config.from_pretrained(str(broken))


def test_fields_of_a_newer_version_are_ignored_with_one_warning(sound: Path, broken: Path) -> None:
    edit(broken, new_way="x", other={"a": "\ud800" * 3}, training_facts={"license": "mit", "energy": 3})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(make_clip(), broken)
    told = [str(each.message) for each in seen if "Unexpected keyword" in str(each.message)]
    assert len(told) == 1
    assert told[0].startswith("Unexpected keyword arguments ['new_way', 'other'] for class ANPromptConfig, these are")
    assert "pip install -U anprompt-peft" in told[0]
    expected = PeftModel.from_pretrained(make_clip(), sound)
    assert all(map(torch.equal, _answers(model), _answers(expected)))


def test_the_saved_format_has_a_version_and_adapters_without_one_load(sound: Path, broken: Path) -> None:
    fields = json.loads((sound / CONFIG).read_text())
    assert fields.pop("format_version") == 4
    assert PeftModel.from_pretrained(make_clip(), sound).peft_config["default"].frozen_share == 0.5
    own = ANPromptConfig(**fields | {"text_update_rank": None, "init_noise_prompts": True})
    get_peft_model(make_clip(), own).save_pretrained(str(broken))
    for name in ("frozen_share", "text_update_rank", "rephrased_weight"):
        del fields[name]
    for version, share in (({}, 0), ({"format_version": 1}, 0), ({"format_version": 2}, 0.5)):
        (broken / CONFIG).write_text(json.dumps(fields | version))
        loaded = PeftModel.from_pretrained(make_clip(), broken).peft_config["default"]
        assert loaded.frozen_share == share, "it answers as it did"
        assert loaded.text_update_rank is None
        assert loaded.rephrased_weight == 0, "and trains as it did"
    assert ANPromptConfig(**ANPromptConfig(class_names=CLASSES).to_dict()).format_version == 4


@pytest.mark.parametrize("version", [1, 2, 3])
def test_adapters_without_prompts_of_former_formats_have_no_updates(
    version: int, broken: Path, pixels: Tensor
) -> None:
    """Whatever their configuration says: there were none without prompts."""
    expected = adapted(num_virtual_tokens=0, num_noise_tokens=0, text_update_rank=None)
    expected.save_pretrained(str(broken))
    fields = json.loads((broken / CONFIG).read_text()) | {"text_update_rank": 8, "format_version": version}
    (broken / CONFIG).write_text(json.dumps(fields))
    loaded: Any = PeftModel.from_pretrained(make_clip(), broken).eval()
    assert loaded.peft_config["default"].text_update_rank is None
    assert torch.equal(logits(loaded, pixels), logits(expected, pixels))


def test_another_method_is_left_to_peft(tmp_path: Path) -> None:
    attributes = {"peft_type": "LORA", "class_names": 5}
    assert check_attributes("", attributes, PeftConfig) is attributes
    get_peft_model(make_clip(), LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    save_file({**load_file(tmp_path / WEIGHTS), "more": torch.zeros(2)}, tmp_path / WEIGHTS)
    clip = make_clip()
    assert PeftModel.from_pretrained(clip, tmp_path).peft_config["default"].peft_type == "LORA"


# code, tokenizers, repositories


def never(*_: Any, **__: Any) -> None:
    """Stands for what must not be called."""
    raise AssertionError("called")


@pytest.mark.parametrize("method", READING_CONFIGS)
def test_noise_prompts_of_a_loaded_adapter_are_not_computed(
    method: str, sound: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(broken, init_noise_prompts=True, tokenizer_name_or_path="evil/code")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", never)
    prepare, load = LOADS[method]
    result = load(prepare(make_clip(), sound), broken)
    if isinstance(result, PeftModel):
        assert result.peft_config["default"].init_noise_prompts is False
        assert all(map(torch.equal, _answers(result), _answers(PeftModel.from_pretrained(make_clip(), sound))))


def test_the_tokenizer_is_the_base_models(clip_folder: Path, broken: Path) -> None:
    edit(broken, tokenizer_name_or_path="evil/code")
    model: Any = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_folder), broken)
    assert model.peft_config["default"].tokenizer_name_or_path == str(clip_folder)
    model.set_classes(["bird", "cow"])
    assert model.class_names == ["bird", "cow"]


def test_a_tokenizer_that_only_the_adapter_knows_is_named(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(broken, tokenizer_name_or_path="evil/code")
    PeftModel.from_pretrained(make_clip(), broken)
    assert "'evil/code'" in caplog.text


def test_no_tokenizer_may_run_code(
    tokenizer: CLIPTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is asked: the answer would come from `input`, which pytest does not allow."""
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    code = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        get_peft_model(make_clip(), ANPromptConfig(class_names=CLASSES, tokenizer_name_or_path=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_auto_peft_model_loads_a_clip_and_names_it(
    clip_folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither another class nor a tokenizer that the adapter brings is looked at."""
    edit(broken, auto_mapping={"base_model_class": "AutoModel", "parent_library": "transformers"})
    (broken / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": "evil--c.T"}}'
    )
    monkeypatch.setattr(AutoModel, "from_pretrained", never)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", never)
    assert isinstance(AutoPeftModel.from_pretrained(broken).get_base_model(), CLIPModel)
    assert not caplog.records
    edit(broken, base_model_name_or_path="some/clip", revision="v1")
    asked: list[Any] = []

    def load(name: str, **settings: Any) -> CLIPModel:
        asked.append((name, settings["revision"]))
        return stock(clip_folder)

    stock = CLIPModel.from_pretrained
    monkeypatch.setattr(CLIPModel, "from_pretrained", load)
    AutoPeftModel.from_pretrained(broken)
    assert asked == [("some/clip", "v1")]
    assert "'some/clip', which the adapter names" in caplog.text
    edit(broken, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base model"):
        AutoPeftModel.from_pretrained(broken)
    monkeypatch.undo()
    edit(broken, base_model_name_or_path="/no/such/clip")
    with pytest.raises(FileNotFoundError, match=r"'/no/such/clip', the base model that .*Load the CLIP that it was"):
        AutoPeftModel.from_pretrained(broken)


def test_the_command_line_names_a_base_model_of_the_hub(
    clip_folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(broken, base_model_name_or_path="some/clip")
    processor = SimpleNamespace(image_processor=None)
    monkeypatch.setattr(models, "load_clip", lambda *_: (CLIPModel.from_pretrained(clip_folder), processor))
    models.load_adapter(str(broken), None, "cpu", "fp32")
    assert "Loading the base model some/clip, which the adapter names." in capsys.readouterr().err


def test_no_processor_may_run_code(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(CLIPProcessor, "from_pretrained", lambda *_, **settings: asked.append(settings))
    models.load_clip(str(clip_folder))
    assert asked[0]["trust_remote_code"] is False


@pytest.mark.parametrize("case", ["base", "NaN", "equal classes"])
def test_the_command_line_refuses_as_the_others_do(case: str, broken: Path) -> None:
    change, message = BAD_TENSORS[case]
    retensor(broken, change)
    with pytest.raises(ValueError, match=message):
        models.load_adapter(str(broken), None, "cpu", "fp32")


def test_info_shows_what_an_adapter_asks_for(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(broken, tokenizer_name_or_path="evil/code", revision="v9", init_noise_prompts=True)
    assert main(["info", str(broken)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tokenizer", "evil/code"] in lines
    assert ["revision", "of", "it", "v9"] in lines
    assert ["init_noise_prompts", "True"] in lines
    edit(broken, class_names=5)
    assert main(["info", str(broken)]) == 2
    assert "class_names" in capsys.readouterr().err


# pickles and links


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("method", WITH_FILES)
def test_adapters_in_sub_folders_are_named(method: str, sound: Path, broken: Path) -> None:
    for name in ("roses", "tulips"):
        shutil.copytree(sound, broken / name)
    (broken / CONFIG).unlink()
    prepare, load = LOADS[method]
    with pytest.raises(ValueError, match=rf"Can't find .* sub-folders roses, tulips: load '{broken / 'roses'}'"):
        load(prepare(make_clip(), sound), broken)
    with pytest.raises(ValueError, match=r"lilies'\. There are adapters in the sub-folders roses, tulips"):
        PeftModel.from_pretrained(make_clip(), broken, subfolder="lilies")


def test_arguments_of_the_adapter_alone_leave_the_base_model_alone(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(CLIPModel.from_pretrained(clip_folder), adapter_name="flowers", tokenizer_name_or_path=None)
    model.save_pretrained(tmp_path)
    asked: list[dict[str, Any]] = []

    def load(name: str, **settings: Any) -> CLIPModel:
        asked.append(settings)
        return stock(name, **settings)

    stock = CLIPModel.from_pretrained
    monkeypatch.setattr(CLIPModel, "from_pretrained", load)
    of_both: Any = {"cache_dir": str(tmp_path), "local_files_only": True, "token": "t", "dtype": torch.float32}
    alone: dict[str, Any] = {"subfolder": "flowers", "import_allowlist": ["transformers"]}
    loaded = AutoPeftModel.from_pretrained(str(tmp_path), autocast_adapter_dtype=False, **of_both, **alone).eval()
    assert asked == [{"revision": None, **of_both}]
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


@pytest.mark.parametrize("method", WITH_FILES)
def test_pickles_are_refused_with_the_cure(
    method: str, sound: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_a_pickle() -> None:
        (broken / WEIGHTS).unlink()
        (broken / PICKLE).write_bytes(pickle.dumps(Evil()))

    monkeypatch.chdir(sound.parent)
    monkeypatch.setattr(torch, "load", never)
    cases = [(leave_a_pickle, "pickle.*not loaded.*save_pretrained")]
    refusals(method, make_clip(), sound, broken, cases)
    assert not (sound.parent / "ran").exists()


@needs_add_adapter
def test_no_pickle_is_saved(sound: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(make_clip(), sound)
    with pytest.raises(ValueError, match=r"safe_serialization=False would write a pickle.*Leave it out"):
        model.save_pretrained(str(tmp_path / "new"), safe_serialization=False)
    with pytest.raises(ValueError, match="would write a pickle"):
        model.save_pretrained(str(tmp_path / "new"), False)
    assert not (tmp_path / "new").exists()


def test_safetensors_cannot_be_switched_off(broken: Path) -> None:
    with pytest.raises(ValueError, match="from safetensors only"):
        make_clip().load_adapter(str(broken), use_safetensors=False)


def test_a_push_leaves_pickles_and_links_behind(sound: Path, broken: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    for name in ("tokenizer.json", "README.md", WEIGHTS):
        kept = (broken / name).read_bytes() if (broken / name).exists() else b""
        (broken / name).unlink(missing_ok=True)
        (broken / name).symlink_to(secret)
        with pytest.raises(ValueError, match=f"{name} is a link to a file outside"):
            push_folder(broken, "me/mine")
        (broken / name).unlink()
        (broken / name).write_bytes(kept)
    (broken / "sub").symlink_to(sound)
    with pytest.raises(ValueError, match=r"sub/adapter_config.json is a link"):
        push_folder(broken, "me/mine")
    (broken / "sub").unlink()
    (broken / WEIGHTS).rename(broken / PICKLE)
    with pytest.raises(ValueError, match="is a pickle"):
        push_folder(broken, "me/mine")


# facts and cards


BAD_FACTS: list[Any] = [
    [], "text", {"license": 5}, {"license": "all rights reserved"}, {"training_data": 3}, {"datasets": "a/b"},
    {"datasets": [1]}, {"arguments": [1]}, {"arguments": {"x": float("nan")}}, {"metrics": 5}, {"metrics": [5]},
    {"metrics": [{"type": "accuracy"}]}, {"metrics": [{"type": "accuracy", "value": "x", "dataset": "d"}]},
    {"metrics": [{"type": 3, "value": 1.0, "dataset": "d"}]},
    {"metrics": [{"type": "accuracy", "value": 1.0, "dataset": "d", "seeds": 3}]},
    {"metrics": [{"type": "accuracy", "value": 1.0, "dataset": "d", "interval": 3}]},
    {"metrics": [{"type": "accuracy", "value": 1.0, "dataset": "d", "name": 3}]},
]  # fmt: skip


def test_facts_are_checked_at_load(sound: Path, broken: Path) -> None:
    cases = [(partial(edit, broken, training_facts=facts), "^training_facts") for facts in BAD_FACTS]
    refusals("PeftModel.load_adapter", make_clip(), sound, broken, cases)


@pytest.mark.parametrize("prepare", [PeftModel.from_pretrained, pytest.param(native, marks=needs_add_adapter)])
def test_a_card_that_cannot_be_written_costs_no_weights(prepare: Any, sound: Path, tmp_path: Path) -> None:
    model = prepare(make_clip(), sound)
    for number, facts in enumerate(BAD_FACTS[1:]):
        model.active_config.training_facts = facts
        with pytest.warns(UserWarning, match="The weights are saved, and the card is not: "):
            model.save_pretrained(tmp_path / str(number))
        assert load_file(tmp_path / str(number) / WEIGHTS).keys() == load_file(sound / WEIGHTS).keys()


def test_weights_are_saved_before_the_card(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = PeftModel.from_pretrained(make_clip(), sound)
    found: list[list[str]] = []

    def look(self: Any, folder: Path) -> None:
        found.append(sorted(path.name for path in Path(folder).iterdir()))

    monkeypatch.setattr(PeftModel, "create_or_update_model_card", look)
    model.save_pretrained(tmp_path)
    assert found == [[CONFIG, WEIGHTS]]


def test_facts_of_a_newer_version_are_left_out() -> None:
    record = {"license": "mit", "energy": 1, "metrics": [{"type": "a", "value": 1, "dataset": "d", "new": 2}]}
    assert TrainingFacts.from_dict(record).license == "mit"
    assert TrainingFacts.from_dict(record).metrics[0].value == 1


# fuzzing


@pytest.mark.parametrize("examples", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzing_finds_nothing(examples: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    fuzzer = Fuzzer(tmp_path)
    fuzz(fuzzer, examples)
    assert fuzzer.failures == []
    assert fuzzer.counts.total() >= examples
    assert sum(count for outcome, count in fuzzer.counts.items() if outcome.endswith(": refused")) > examples / 2


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of names, a tensor of the base model is overwritten, and the fuzzer says so."""
    fuzzer = Fuzzer(tmp_path)
    config, tensors = fuzzer.sound["plain"]
    save_file({**load_bytes(tensors), f"{PREFIX}logit_scale": torch.tensor(9.0)}, tmp_path / "more")
    method = "PeftModel.load_adapter"
    monkeypatch.setattr("anprompt_peft.trust.tensors._check_names", lambda *_: None)
    fuzzer.try_one(method, config, (tmp_path / "more").read_bytes())
    assert fuzzer.counts == {f"{method}: loaded, and tensors changed": 1}
    assert len(fuzzer.failures) == 1


def test_a_snapshot_sees_changes(sound: Path) -> None:
    def changes(model: Any) -> list[Callable[[], Any]]:
        return [
            lambda: model.train(not model.training),
            lambda: model.logit_scale.requires_grad_(False),
            lambda: model.register_forward_hook(lambda *_: None),
            lambda: model.config.__setattr__("id2label", {0: "x"}),
            lambda: model.logit_scale.data.add_(1),
            lambda: model.__setattr__("text_projection", copy.deepcopy(model.text_projection)),
        ]

    for number in range(6):
        model = make_clip()
        before = Snapshot(model)
        assert before.same(full=True)
        changes(model)[number]()
        assert not before.same(full=True)
