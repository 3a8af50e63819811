"""PEFT's verbs, and the traps on the way to them."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from peft import AutoPeftModel, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTokenizer

from anprompt_peft import ANPromptCLIPModel, ANPromptConfig, ANPromptModel
from anprompt_peft.fast.savings import Savings
from anprompt_peft.method import registration
from anprompt_peft.method.families import FAMILIES, image_head
from anprompt_peft.method.layer import ANPromptHead, ANPromptLayer, grow_mask
from helpers import (
    CLASSES,
    adapted,
    cached,
    logits,
    make_clip,
    make_config,
    make_model,
    needs_add_adapter,
    scatter,
    tokenizer_of,
    trainable,
)

every_family = pytest.mark.parametrize("family", FAMILIES)
LABELS = torch.tensor([0, 2, 1])
ANPROMPT = PeftType["ANPROMPT"]
OTHER: dict[str, Any] = {"text_layers": [1, 3], "vision_layers": [4], "num_virtual_tokens": 2, "num_noise_tokens": 1}


UPDATES: dict[str, Any] = {
    "num_virtual_tokens": 0, "num_noise_tokens": 0, "text_update_rank": None, "vision_lora_rank": 2,
    "text_lora_rank": 1,
}  # fmt: skip


def test_registration_is_idempotent() -> None:
    assert registration.peft_type() is ANPROMPT
    assert PeftType("ANPROMPT") is ANPROMPT is getattr(PeftType, "ANPROMPT")  # noqa: B009
    assert list(PeftType).count(ANPROMPT) == 1
    registration.register(ANPromptConfig, ANPromptModel)
    assert pickle.loads(pickle.dumps(ANPROMPT)) is ANPROMPT


def test_a_cell_that_is_run_again_leaves_nothing_of_the_first(pixels: Tensor, tmp_path: Path) -> None:
    clip = make_clip()
    first = adapted(clip)
    first.set_classes(["cow", "red bird"])
    first.set_class_weights(torch.tensor([1.0, 2.0]))
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(clip, make_config(text_layers=[4], vision_layers=[4]))
    torch.manual_seed(0)
    fresh = get_peft_model(make_clip(), make_config(text_layers=[4], vision_layers=[4]))
    assert trainable(model).keys() == trainable(fresh).keys()
    scatter(model)(pixel_values=pixels, labels=LABELS).loss.backward()
    assert model.class_names == CLASSES
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make_clip(), tmp_path)
    assert torch.equal(logits(again.eval(), pixels), logits(model.eval(), pixels))


def test_a_second_adapter_that_fails_leaves_the_first(clip: CLIPModel, pixels: Tensor, tmp_path: Path) -> None:
    model = adapted(clip)
    before = logits(model, pixels)
    with pytest.raises(ValueError, match="between 1 and 4"):
        get_peft_model(clip, make_config(text_layers=[9]))
    assert torch.equal(logits(model, pixels), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(clip, tmp_path), pixels), before)


@pytest.mark.slow
def test_pefts_own_tests(clip_folder: Path, tmp_path: Path) -> None:
    """Of the installed version; `peft_suite.py` says which do not apply, and which must fail."""
    cached(tmp_path / "hub", "user/clip", clip_folder, "a" * 40)
    environment = {
        "PEFT_TESTS": str(pefts_tests(tmp_path)), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", str(Path(__file__).parent / "peft_suite.py")]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b3\d passed, \d+ skipped, 3 xfailed", done.stdout), done.stdout


def pefts_tests(folder: Path) -> Path:
    """Where PEFT's tests lie: `PEFT_TESTS`, or its source distribution from the package index."""
    if given := os.environ.get("PEFT_TESTS"):
        return Path(given)
    wanted = f"peft=={metadata.version('peft')}"
    download = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", "peft", "-d", str(folder), wanted]
    done = subprocess.run([sys.executable, *download], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wanted} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


@pytest.mark.parametrize("load", [False, True], ids=["get_peft_model", "from_pretrained"])
def test_a_hook_of_accelerate_on_the_root(
    load: bool, tokenizer: CLIPTokenizer, pixels: Tensor, tmp_path: Path
) -> None:
    """As device_map puts there: it holds the forward of the instance."""
    expected = adapted()
    expected.save_pretrained(tmp_path)
    clip = make_clip()
    add_hook_to_module(clip, AlignDevicesHook(io_same_device=True))
    model = PeftModel.from_pretrained(clip, tmp_path) if load else adapted(clip)
    if not load:
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model, pixels), logits(expected, pixels))
    for _ in range(2):
        bare = model.unload()
        texts = tokenizer(["a cat"], return_tensors="pt")
        assert torch.equal(
            bare(**texts, pixel_values=pixels).logits_per_image,
            make_clip()(**texts, pixel_values=pixels).logits_per_image,
        )
        remove_hook_from_module(bare)  # leaves CLIP's forward on the instance
        model = PeftModel.from_pretrained(bare, tmp_path)
        assert torch.equal(logits(model, pixels), logits(expected, pixels))


ADAPTING: dict[str, Callable[[CLIPModel, CLIPTokenizer, Path], Any]] = {
    "get_peft_model": lambda clip, tokenizer, folder: get_peft_model(clip, make_config(tokenizer)),
    "from_pretrained": lambda clip, tokenizer, folder: PeftModel.from_pretrained(clip, folder),
}


def _wrap_forward(clip: Any) -> None:
    forward = clip.forward
    clip.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def _compile_forward(clip: Any) -> None:
    clip.forward = torch.compile(clip.forward)


def _spread(clip: Any) -> None:
    clip.hf_device_map = {"text_model": 0, "vision_model": 1}


def _quantise(clip: Any) -> None:
    """As bitsandbytes stores 8-bit weights: int8 numbers, and scales beside them."""
    for projection in (clip.visual_projection, clip.text_projection):
        scales = projection.weight.data.abs().amax(dim=1, keepdim=True) / 127
        whole = (projection.weight.data / scales).round().to(torch.int8)
        projection.weight = torch.nn.Parameter(whole, requires_grad=False)
        projection.register_buffer("scales", scales)


@pytest.mark.parametrize("adapting", ADAPTING)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrap_forward, "forward of this CLIP was replaced by .*Adapt the CLIP first"),
        (_compile_forward, "forward of this CLIP was replaced by .*Adapt the CLIP first"),
        (partial(cpu_offload, execution_device="cpu"), "by device_map or offloading.*on one device"),
        (_spread, r"spread over devices \['0', '1'\].*on one device"),
        (
            _quantise,
            r"quantised visual_projection and text_projection .*llm_int8_skip_modules=\['visual_proj",
        ),
    ],
)
def test_a_clip_that_prompts_cannot_enter_is_refused(
    change: Callable[[CLIPModel], None], message: str, adapting: str, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    adapted().save_pretrained(tmp_path)
    clip = make_clip()
    change(clip)
    with pytest.raises(ValueError, match=message):
        ADAPTING[adapting](clip, tokenizer, tmp_path)
    assert type(clip) is CLIPModel


def test_registration_fills_the_tables_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, ANPromptConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, ANPromptModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, "anprompt_"),
    )
    for table, _ in tables:
        monkeypatch.delitem(table, ANPROMPT)
    registration.register(ANPromptConfig, ANPromptModel)
    for table, expected in tables:
        assert table[ANPROMPT] is expected or table[ANPROMPT] == expected


def test_peft_type_is_a_full_member_of_the_enum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built again, as on the first call."""
    for table in ("_member_map_", "_value2member_map_"):
        monkeypatch.setattr(PeftType, table, {k: v for k, v in getattr(PeftType, table).items() if k != "ANPROMPT"})
    monkeypatch.setattr(PeftType, "_member_names_", [name for name in PeftType._member_names_ if name != "ANPROMPT"])
    assert "ANPROMPT" not in PeftType.__members__
    member = registration.peft_type()
    try:
        assert registration.peft_type() is member is PeftType["ANPROMPT"] is PeftType("ANPROMPT")
        assert getattr(PeftType, "ANPROMPT") is member  # noqa: B009
        assert list(PeftType)[-1] is member
        assert (member.name, member.value, str.__str__(member), repr(member)) == (
            "ANPROMPT", "ANPROMPT", "ANPROMPT", "<PeftType.ANPROMPT: 'ANPROMPT'>"
        )  # fmt: skip
    finally:
        type.__setattr__(PeftType, "ANPROMPT", ANPROMPT)


@every_family
def test_only_the_adapter_is_trainable_and_saved(family: str, tmp_path: Path) -> None:
    model = adapted(make_model(family))
    assert trainable(model)
    assert all("anprompt_" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    parameters = {name.replace(".default", "") for name in trainable(model)}
    buffers = {"noise_prompts", "clean_features", "perturbed_features", "class_ids"}
    prefix = f"base_model.model.{FAMILIES[family].image_head}.anprompt_"
    assert set(saved) == parameters | {prefix + name for name in buffers}


def test_parameter_count_at_vit_b_16(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's figure; but for the patch size, the sizes of ViT-B/16 are transformers' defaults."""
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        config = ANPromptConfig(class_names=["cat", "dog"], init_noise_prompts=False)
        model = get_peft_model(clip, config, low_cpu_mem_usage=True)
    model.print_trainable_parameters()
    assert "trainable params: 5,090,560 " in capsys.readouterr().out
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert "5,090,560" in readme


def test_save_and_load_in_a_fresh_process(clip_folder: Path, tmp_path: Path, pixels: Tensor) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    model = scatter(get_peft_model(clip, ANPromptConfig(class_names=CLASSES)).eval())
    model.save_pretrained(tmp_path / "adapter")
    output = model(pixel_values=pixels)
    noise = model.visual_projection.anprompt_noise_prompts["default"]
    save_file({"pixels": pixels}, tmp_path / "in.safetensors")
    program = f"""
import sklearn.cluster, torch, anprompt_peft.method.class_texts
def never(*_, **__): raise AssertionError("recomputed at load")
sklearn.cluster.KMeans = never
anprompt_peft.method.class_texts.AutoTokenizer.from_pretrained = never
import anprompt_peft
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel
torch.set_num_threads(1)
clip = CLIPModel.from_pretrained({str(clip_folder)!r})
model = PeftModel.from_pretrained(clip, {str(tmp_path / "adapter")!r}).eval()
output = model(pixel_values=load_file({str(tmp_path / "in.safetensors")!r})["pixels"])
tensors = {{name: output[name].contiguous() for name in ("logits", "logits_class", "logits_prototype")}}
noise = model.visual_projection.anprompt_noise_prompts["default"]
save_file({{**tensors, "noise": noise}}, {str(tmp_path / "out.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    reloaded = load_file(tmp_path / "out.safetensors")
    assert torch.equal(reloaded.pop("noise"), noise)
    for name, tensor in reloaded.items():
        assert torch.equal(tensor, output[name]), name


def test_auto_peft_model(clip_folder: Path, tmp_path: Path, pixels: Tensor) -> None:
    model = adapt_from(clip_folder)
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def adapt_from(clip_folder: Path, **settings: Any) -> Any:
    config = ANPromptConfig(class_names=CLASSES, **settings)
    return scatter(get_peft_model(CLIPModel.from_pretrained(clip_folder), config).eval())


@every_family
def test_low_cpu_mem_usage(family: str, tmp_path: Path, pixels: Tensor) -> None:
    model = adapted(make_model(family))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def test_weights_that_were_never_loaded(clip: CLIPModel, pixels: Tensor) -> None:
    model = get_peft_model(clip, make_config(init_noise_prompts=False))
    with pytest.raises(ValueError, match="'default' were neither computed nor loaded"):
        model(pixel_values=pixels)


@every_family
def test_several_adapters(family: str, tmp_path: Path, pixels: Tensor) -> None:
    alone = {name: adapted(make_model(family), **settings) for name, settings in (("one", {}), ("two", OTHER))}
    for name, model in alone.items():
        model.save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(make_model(family), tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", adapter_name="two")
    assert both.active_adapter == "one"
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        assert torch.equal(logits(both, pixels), logits(alone[name], pixels))
        assert all(f".{name}" in parameter for parameter in trainable(both))
    both.delete_adapter("one")
    assert both.active_adapters == ["two"]
    assert torch.equal(logits(both, pixels), logits(alone["two"], pixels))
    assert not any(".one" in name for name in both.state_dict())
    assert list(image_head(both.get_base_model()).configs) == ["two"]


@every_family
def test_adding_a_second_adapter_uses_the_frozen_clip(family: str, pixels: Tensor) -> None:
    """The second adapter's noise prompts come from CLIP alone, though the first adapter is active."""
    model, config = adapted(make_model(family)), make_config(tokenizer_of(family), **OTHER)
    model.add_adapter("two", config)
    fresh = get_peft_model(make_model(family), config)
    for name in ("anprompt_noise_prompts", "anprompt_clean_features", "anprompt_perturbed_features"):
        ours, expected = (
            getattr(image_head(model.get_base_model()), name)["two"],
            getattr(image_head(fresh.get_base_model()), name)["default"],
        )
        assert torch.equal(ours, expected)
    assert model.active_adapters == ["default"]
    assert not any("two" in name for name in trainable(model))


@every_family
def test_deleting_the_last_adapter_leaves_clip(family: str, pixels: Tensor) -> None:
    model = adapted(make_model(family))
    model.delete_adapter("default")
    with torch.no_grad():
        frozen = make_model(family).requires_grad_(False)  # torch's pooling rounds by that
        ours, base = model.get_image_features(pixels), frozen.get_image_features(pixels)
    assert torch.equal(ours.pooler_output, base.pooler_output)
    with pytest.raises(ValueError, match="No ANPrompt adapter is active"):
        model.base_model.model(pixel_values=pixels)


def test_two_active_adapters_are_refused() -> None:
    model = adapted()
    model.add_adapter("two", make_config())
    with pytest.raises(ValueError, match=r"one active adapter at a time, not \['default', 'two'\]"):
        model.base_model.set_adapter(["default", "two"])
    assert model.active_adapters == ["default"]


def test_mixed_batches_are_refused(pixels: Tensor) -> None:
    model = adapted()
    with pytest.raises(ValueError, match="cannot mix adapters within a batch"):
        model(pixel_values=pixels, adapter_names=["default"] * 3)


@every_family
@pytest.mark.parametrize("verb", ["merge_adapter", "merge_and_unload"])
def test_merge_is_refused(verb: str, family: str, pixels: Tensor) -> None:
    model = adapted(make_model(family))
    before = logits(model, pixels)
    with pytest.raises(ValueError, match="cannot be merged"):
        getattr(model, verb)()
    assert torch.equal(logits(model, pixels), before)


def test_other_adapters_in_the_model_are_refused(clip: CLIPModel) -> None:
    lora: Any = get_peft_model(clip, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="already carries adapters of another method"):
        get_peft_model(lora.base_model.model, make_config())


LORA = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
BESIDE: dict[str, Callable[[Any], Any]] = {
    "add_adapter": lambda model: model.get_base_model().add_adapter(LORA, "lora"),
    "get_peft_model": lambda model: get_peft_model(model.get_base_model(), LORA, "lora"),
    "inject": lambda model: peft.inject_adapter_in_model(LORA, model.get_base_model(), "lora"),
    "PeftModel": lambda model: model.add_adapter("lora", LORA),
}


@pytest.mark.parametrize("way", [pytest.param("add_adapter", marks=needs_add_adapter), *[*BESIDE][1:]])
def test_another_method_beside_an_adapter_is_refused(way: str, pixels: Tensor) -> None:
    model = adapted()
    before, names = logits(model, pixels), [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=r"Merge it into the CLIP first|Cannot combine adapters"):
        BESIDE[way](model)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(logits(model, pixels), before)
    assert list(model.peft_config) == ["default"]


def test_a_base_model_with_adapters_in_it_is_not_saved(clip: CLIPModel, tmp_path: Path) -> None:
    model = adapted(clip)
    with pytest.raises(ValueError, match=r"could not be loaded again. Save them with .*PeftModel.*unload\(\)"):
        model.get_base_model().save_pretrained(tmp_path / "clip")
    assert not (tmp_path / "clip").exists()
    model.unload().save_pretrained(tmp_path / "clip")
    again = CLIPModel.from_pretrained(tmp_path / "clip")
    assert all(torch.equal(tensor, clip.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_disabled_is_the_base_model_bit_for_bit(tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    clip, model = make_clip(), adapted()
    tokens = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad(), model.disable_adapter():
        ours, base = model(**tokens, pixel_values=pixels), clip(**tokens, pixel_values=pixels)
        assert torch.equal(ours.logits_per_image, base.logits_per_image)
        assert torch.equal(ours.vision_model_output.last_hidden_state, base.vision_model_output.last_hidden_state)
        assert torch.equal(logits(model, pixels), base.logits_per_image)
        assert set(model(pixel_values=pixels, labels=LABELS).loss_terms) == {"cross_entropy_class"}
    assert not torch.equal(logits(model, pixels), base.logits_per_image)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_disabled_heeds_masks_as_the_base_model_does(attention: str, tokenizer: CLIPTokenizer) -> None:
    """Masks that hide words before the end of the text, too."""
    clip, model = make_clip(attention), adapted(make_clip(attention))
    tokens = tokenizer(["a photo of one red bird.", "a cat"], padding=True, return_tensors="pt")
    hiding = tokens.attention_mask.clone()
    hiding[:, 2] = 0
    with torch.no_grad(), model.disable_adapter():
        for mask in (tokens.attention_mask, hiding):
            ours, base = (each.get_text_features(tokens.input_ids, attention_mask=mask) for each in (model, clip))
            assert torch.equal(ours.pooler_output, base.pooler_output)
        assert not torch.equal(clip.get_text_features(tokens.input_ids).pooler_output, base.pooler_output)


def test_unload_gives_the_base_model_back(pixels: Tensor) -> None:
    clip = make_clip()
    attributes = set(vars(clip))
    model = adapted(clip)
    model.set_classes(["bird", "cow"])
    logits(model, pixels)
    base = model.unload()
    assert type(base) is CLIPModel
    assert base is clip
    assert set(vars(base)) == attributes
    assert set(base.state_dict()) == set(make_clip().state_dict())
    with torch.no_grad():
        expected = make_clip().get_image_features(pixels).pooler_output
        assert torch.equal(base.get_image_features(pixels).pooler_output, expected)
    again = adapted(base)
    assert logits(again, pixels).shape == (3, 3)


@needs_add_adapter
def test_native_integration(tmp_path: Path, pixels: Tensor) -> None:
    """`add_adapter`, `save_pretrained`, `load_adapter`, `set_adapter`, `delete_adapter` of transformers itself."""
    model = make_clip()
    model.add_adapter(make_config(), adapter_name="one")
    assert type(model) is ANPromptCLIPModel
    scatter(model)
    before = logits(model, pixels)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}

    fresh = make_clip()
    fresh.load_adapter(tmp_path, adapter_name="two")
    assert torch.equal(logits(fresh.eval(), pixels), before)
    fresh.add_adapter(make_config(**OTHER), adapter_name="three")
    assert fresh.active_adapters() == ["three"]
    fresh.set_adapter("two")
    assert torch.equal(logits(fresh, pixels), before)
    fresh.disable_adapters()
    with torch.no_grad():
        base = make_clip().get_image_features(pixels).pooler_output
        assert torch.equal(fresh.get_image_features(pixels).pooler_output, base)
    fresh.enable_adapters()
    fresh.delete_adapter("two")
    with torch.no_grad():
        assert not torch.equal(fresh.get_image_features(pixels).pooler_output, base)


@pytest.mark.filterwarnings("ignore:Adapter one was active")
@pytest.mark.parametrize("way", ["peft", pytest.param("transformers", marks=needs_add_adapter)])
def test_targets_of_a_deleted_adapter_do_not_outlive_it(way: str, pixels: Tensor) -> None:
    """Asked classes get w and u by the settings of the adapter in place, not of one that bore its name before."""
    first, second = (make_config(noise_seed=seed, noise_scale=seed) for seed in (1, 2))

    def build(config: ANPromptConfig) -> Any:
        model = make_clip()
        if way == "peft":
            return get_peft_model(model, config, adapter_name="one")
        model.add_adapter(config, adapter_name="one")
        return model

    def terms(model: Any) -> dict[str, Tensor]:
        model.set_classes(asked) if model is not used else None
        output = model(pixel_values=pixels, labels=LABELS)
        output.loss.backward()
        return output.loss_terms

    asked, used = ["red bird", "cow", "dog"], build(first)
    used.set_classes(asked)
    before = terms(used)
    used.delete_adapter("one")
    if way == "peft":
        used.add_adapter("one", second)
    else:
        used.add_adapter(second, adapter_name="one")
    used.set_adapter("one")
    fresh = build(make_config(noise_seed=2, noise_scale=2))
    fresh.load_state_dict(used.state_dict())
    after, expected = terms(used), terms(fresh)
    assert after.keys() == expected.keys() == before.keys()
    for name, term in expected.items():
        assert torch.equal(after[name], term), name
    assert not torch.equal(after["waloss"], before["waloss"])


def test_auto_model_from_an_adapter_directory(clip_folder: Path, tmp_path: Path, pixels: Tensor) -> None:
    model = adapt_from(clip_folder)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is ANPromptCLIPModel
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@every_family
def test_copies_are_independent(family: str, way: str, pixels: Tensor) -> None:
    model = adapted(make_model(family))
    before = logits(model, pixels)
    model(pixel_values=pixels, labels=LABELS).loss.backward()
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        other = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(logits(other, pixels), before)
    scatter(other, scale=1.0)
    assert not torch.equal(logits(other, pixels), before)
    assert torch.equal(logits(model, pixels), before)


@pytest.mark.parametrize(
    "savings", [Savings(), Savings(text_chunk=1), Savings.none()], ids=["fast", "chunks", "plain"]
)
@pytest.mark.parametrize("settings", [{}, UPDATES], ids=["prompts", "updates"])
@pytest.mark.parametrize(("family", "reentrant"), [("clip", True), *((each, False) for each in FAMILIES)])
def test_gradient_checkpointing(
    family: str, reentrant: bool, settings: dict[str, Any], savings: Savings, pixels: Tensor
) -> None:
    model = adapted(make_model(family, dtype=torch.float64), **settings).train()
    model.set_savings(savings)
    loss = model(pixel_values=pixels.double(), labels=LABELS).loss
    expected = torch.autograd.grad(loss, list(trainable(model).values()))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for layer in model.modules():
        if isinstance(layer, ANPromptLayer):
            layer.get_submodule("base_layer.self_attn.q_proj").register_forward_hook(count)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss = model(pixel_values=pixels.double(), labels=LABELS).loss
    forward_calls = calls
    loss.backward()
    assert calls > forward_calls
    for weight, gradient in zip(trainable(model).values(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)


RANKS = {
    "latent_dim": 40,
    "noise_map": "learned",
    "projection_rank": 2,
    "text_update_rank": 3,
    "vision_lora_rank": 2,
    "text_lora_rank": 3,
    "prototype_rank": 2,
    "prompt_mixing": 0.9,
}


@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["fast", "plain"])
@pytest.mark.parametrize("parts", [{}, RANKS, UPDATES], ids=["full", "ranks", "updates"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(dtype: torch.dtype, parts: dict[str, Any], savings: Savings, pixels: Tensor) -> None:
    """The adapter trains in float32 on a half precision base, or follows it when PEFT is told so."""
    exact = adapted(**parts)(pixel_values=pixels, labels=LABELS)
    for autocast_adapter_dtype, adapter_dtype in ((True, torch.float32), (False, dtype)):
        base, config = make_clip(dtype=dtype), make_config(**parts)
        model = get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype).eval()
        model.set_savings(savings)
        assert {weight.dtype for weight in trainable(model).values()} == {adapter_dtype}
        assert model.visual_projection.anprompt_class_ids["default"].dtype == torch.int64
        output = scatter(model)(pixel_values=pixels, labels=LABELS)
        assert output.loss.dtype == output.logits.dtype == torch.float32
        torch.testing.assert_close(output.logits, exact.logits, rtol=0, atol=0.5)
        output.loss.backward()
        assert all(weight.grad.isfinite().all() for weight in trainable(model).values())


@every_family
@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["fast", "plain"])
@pytest.mark.parametrize("parts", [{}, RANKS, UPDATES], ids=["full", "ranks", "updates"])
def test_autocast(family: str, parts: dict[str, Any], savings: Savings, pixels: Tensor) -> None:
    model = adapted(make_model(family), **parts)
    model.set_savings(savings)
    exact = model(pixel_values=pixels, labels=LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pixel_values=pixels, labels=LABELS)
    assert output.loss.dtype == output.logits.dtype == torch.float32
    assert not torch.equal(output.logits, exact.logits)
    torch.testing.assert_close(output.logits, exact.logits, rtol=0, atol=0.5)
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in trainable(model).values())


def test_hidden_states_and_attentions_come_through(pixels: Tensor) -> None:
    model = adapted()
    output = model.get_image_features(pixels, output_hidden_states=True)
    lengths = [state.shape[1] for state in output.hidden_states]
    assert lengths == [5, 5, 5, 5, 14, 14], "nine prompts in what the layers give out"
    assert output.last_hidden_state.shape[1] == 5


@every_family
def test_every_trainable_weight_gets_a_gradient(family: str, pixels: Tensor) -> None:
    """DDP stops on trainable weights that take no part."""
    ranks: dict[str, Any] = {"projection_rank": 2, "text_update_rank": 3, "prototype_rank": 2}
    model = adapted(make_model(family), **ranks, latent_dim=10, noise_map="learned")
    model.add_adapter("two", make_config(tokenizer_of(family)))
    model.train()(pixel_values=pixels, labels=LABELS).loss.backward()
    assert all(weight.grad is not None for weight in trainable(model).values())


@every_family
def test_layers_have_no_second_copy_of_the_head(family: str) -> None:
    model = adapted(make_model(family))
    heads = [module for module in model.modules() if isinstance(module, ANPromptHead)]
    assert len(heads) == 1
    names = list(model.state_dict())
    assert len(names) == len(set(names)) == len({name.replace("base_layer.", "") for name in names})


@pytest.mark.parametrize("count", [1, 3])
def test_flash_attention_mask(count: int) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = torch.tensor([[1] * count + [1, 1, 1, 0], [1] * count + [1, 1, 1, 1]])
    grown = grow_mask(mask, count)
    assert grown is not None
    assert torch.equal(grown, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_four_dimensional_masks(dtype: torch.dtype) -> None:
    def build(kept: Tensor) -> Tensor:
        allowed = torch.ones(kept.shape[1], kept.shape[1]).tril().bool() & kept.bool()[:, None, None, :]
        if dtype == torch.bool:
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)

    kept = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = build(torch.cat([torch.ones(2, 3, dtype=torch.int64), kept], dim=1))
    grown = grow_mask(build(kept), 3)
    assert grown is not None
    assert torch.equal(grown, expected)


def test_unknown_masks_are_refused() -> None:
    assert grow_mask(None, 3) is None
    with pytest.raises(NotImplementedError, match=r"of the form \(4,\).*attn_implementation='sdpa'"):
        grow_mask(torch.ones(4), 3)
    block_mask: Any = object()
    with pytest.raises(NotImplementedError, match=r"of the form object\. .*'flash_attention_2'\.$"):
        grow_mask(block_mask, 3)
