"""Loads many broken adapters, by every method that loads one, and counts what happens.

Every example changes the configuration or the weights file of a sound adapter of a tiny CLIP: Hypothesis changes
fields, headers and values as what they are, and from each of its examples a byte mutator makes others. An example may
be refused with a documented exception, which must leave the model as it was, or be loaded: then the base is unchanged
bit for bit, and the adapter's tensors are those of the file. Anything else is a failure.
"""

from __future__ import annotations

import copy
import json
import random
import signal
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peft import AutoPeftModel, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from anprompt_cli.adapters import CONFIG, WEIGHTS, locate
from anprompt_cli.info import describe
from anprompt_peft import ANPromptConfig
from anprompt_peft.method.layer import ANPromptHead

DOCUMENTED = (ValueError, TypeError, FileNotFoundError, NotImplementedError)
SECONDS = 60
FULL = 50
MUTANTS = 25
READS_NO_CONFIG = {"PeftModel.load_adapter, same name"}
CONTEXT, VOCABULARY, END = 8, 32, 31

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
    | st.sampled_from([10**6, 2**31, 2**63, 10**400, -1, 0, 1e308])
    | st.sampled_from(["\ud800", "a/b", "text", "learned", "add", "x" * 9999]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


def tiny_clip() -> CLIPModel:
    """A random CLIP of two layers per encoder."""
    shared = {"intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 8, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": END}
    vision = {"hidden_size": 12, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    towers = {"text_config": {**shared, **text}, "vision_config": {**shared, **vision}}
    return CLIPModel(CLIPConfig(**towers, projection_dim=6)).eval()


def save_sound_adapter(folder: Path, base: Path, **choices: Any) -> None:
    """Save an adapter of a tiny CLIP, without a tokenizer."""
    config = ANPromptConfig(class_names=["cat", "dog", "fish"], init_noise_prompts=False, **choices)
    model: Any = get_peft_model(CLIPModel.from_pretrained(base), config)
    head = model.get_base_model().visual_projection
    assert isinstance(head, ANPromptHead)
    for name in ("anprompt_noise_prompts", "anprompt_clean_features", "anprompt_perturbed_features"):
        getattr(head, name)["default"].normal_()
    rows = torch.arange(3)[:, None].expand(3, CONTEXT).clone()
    rows[:, 3:] = END
    head.anprompt_class_ids["default"].copy_(rows)
    model.save_pretrained(folder)


class Snapshot:
    """What a refused load must leave: modules, classes, attributes, hooks, trainability, labels, values.

    Every look compares the modules, and the values by torch's counters of changes. A full one also compares all
    attributes, and the values bit for bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.looks = self._look(True)
        self.values = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def _look(self, full: bool) -> list[Any]:
        modules = list(self.model.modules())
        shapes = [(id(each), type(each), each.training, *map(_tensor, each._parameters.values())) for each in modules]
        active = [list(each.active_adapters) for each in modules if isinstance(each, BaseTunerLayer)]
        attributes = [_shape_of(vars(each)) for each in modules] if full else []
        return [shapes, active, {**vars(self.model.config)}, attributes]

    def same(self, full: bool) -> bool:
        """Whether the model is what it was."""
        if self._look(full)[: 4 if full else 3] != self.looks[: 4 if full else 3]:
            return False
        now = self.model.state_dict() if full else {}
        return all(torch.equal(tensor, self.values[name]) for name, tensor in now.items())


def _tensor(tensor: Any) -> Any:
    return tensor if tensor is None else (id(tensor), tensor._version, tensor.requires_grad)


@st.composite
def configurations(draw: st.DrawFn, sound: bytes) -> bytes:
    """A configuration with one to three fields changed, removed or added."""
    fields = json.loads(sound)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*fields, "new_field", "runtime_config", "target_modules"]))
        action = draw(st.sampled_from(["set", "set", "set", "remove", "add", "deep"]))
        if action == "remove":
            fields.pop(name, None)
        elif action == "add" and isinstance(fields.get(name), (int, float)):
            fields[name] += draw(st.sampled_from([-1, 1, 0.5, 10**4, 10**9]))
        elif action == "deep":
            nested: Any = []
            for _ in range(draw(st.sampled_from([5, 50, 400]))):
                nested = [nested]
            fields[name] = nested
        else:
            fields[name] = draw(JSON)
    if draw(st.integers(0, 60)) == 0:
        return b'{"alpha":' + b"[" * 100_000
    return json.dumps(fields).encode()


@st.composite
def weights(draw: st.DrawFn, sound: bytes) -> bytes:
    """A weights file with its header changed, or a value in it."""
    size = struct.unpack("<Q", sound[:8])[0]
    header, data = json.loads(sound[8 : 8 + size]), bytearray(sound[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    name = draw(st.sampled_from(names))
    if draw(st.integers(0, 3)) == 0:
        begin, end = header[name]["data_offsets"]
        value = draw(
            st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff" * 4, b"\x00" * 4, b"\x05\0\0\0"])
        )
        at = begin + 4 * draw(st.integers(0, (end - begin) // 4 - 1))
        data[at : at + 4] = value
    else:
        _change_header(draw, header, data, name, names)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def _change_header(draw: st.DrawFn, header: dict[str, Any], data: bytearray, name: str, names: list[str]) -> None:
    entry = header[name]
    action = draw(st.sampled_from(["rename", "remove", "add", "shape", "dtype", "offsets", "metadata", "swap"]))
    if action == "rename":
        header[draw(foreign_names())] = header.pop(name)
    elif action == "remove":
        del header[name]
    elif action == "add":
        shape = draw(st.sampled_from([[1], [12, 3, 4, 4], [], [0], [8, 8]]))
        count = 4 * torch.Size(shape).numel()
        header[draw(foreign_names())] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + count],
        }
        data.extend(bytes(count))
    elif action == "shape":
        other = [*reversed(entry["shape"])]
        entry["shape"] = draw(
            st.sampled_from([other, [2**40], [2**62, 4], [0], [], [-1], [*entry["shape"], 1]]) | JSON
        )
    elif action == "dtype":
        entry["dtype"] = draw(st.sampled_from(["F16", "I32", "F64", "I64", "BOOL", "F8_E4M3", "U64", "X"]) | JSON)
    elif action == "offsets":
        entry["data_offsets"] = draw(st.lists(st.integers(0, 2**64), min_size=2, max_size=2) | JSON)
    elif action == "metadata":
        header["__metadata__"] = draw(JSON)
    else:
        second = draw(st.sampled_from(names))
        header[name], header[second] = header[second], header[name]


def foreign_names() -> st.SearchStrategy[str]:
    """Names of the base model's tensors, of other adapters, and anything."""
    base = "base_model.model."
    return st.sampled_from(
        [
            f"{base}vision_model.embeddings.patch_embedding.weight", f"{base}logit_scale", "logit_scale",
            f"{base}visual_projection.base_layer.weight", f"{base}visual_projection.anprompt_tokens.default",
            f"{base}visual_projection.anprompt_tokens.one", "visual_projection.anprompt_tokens",
            f"{base}text_model.encoder.layers.1.base_layer.mlp.fc1.weight", f"{base}{base}logit_scale",
        ]
    ) | st.text(max_size=20)  # fmt: skip


def mutated(sound: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, set, removed, repeated or cut off, none of them values of tensors."""
    content = bytearray(sound)
    end = len(sound) if sound.startswith(b"{") else 8 + struct.unpack("<Q", sound[:8])[0]
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(min(len(content), rng.choice([16, end, end])) or 1)
        action = rng.choice(["flip", "flip", "flip", "set", "set", "remove", "repeat", "cut"])
        if action == "flip":
            content[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in content[at : at + 1])
        elif action == "set":
            content[at : at + 1] = bytes([rng.choice([0, 255, *b'09-"[]{},.:e', rng.randrange(256)])])
        elif action == "remove":
            del content[at : at + rng.choice([1, 4, 100])]
        elif action == "repeat":
            content[at:at] = content[at : at + rng.choice([1, 8, 200])]
        else:
            del content[at + rng.randrange(1 + len(content)) :]
    return bytes(content)


class Fuzzer:
    """Sound adapters and models to load broken ones into, and the counts."""

    def __init__(self, folder: Path) -> None:
        self.base, self.folder, self.counts = folder / "base", folder / "broken", Counter[str]()
        self.failures: list[str] = []
        tiny_clip().save_pretrained(self.base)
        ranks = {"projection_rank": 2, "prototype_rank": 2, "latent_dim": 5, "noise_map": "learned"}
        for name, choices in (("plain", {}), ("ranks", ranks)):
            save_sound_adapter(folder / name, self.base, **choices)
        self.sound = {name: self._files(folder / name) for name in ("plain", "ranks")}
        clip = CLIPModel.from_pretrained(self.base)
        self.base_values = load_file(self.base / "model.safetensors")
        self.loading: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "PeftModel.from_pretrained": (
                copy.deepcopy(clip),
                lambda model: PeftModel.from_pretrained(model, self.folder),
            ),
            "PeftModel.load_adapter": (
                PeftModel.from_pretrained(copy.deepcopy(clip), folder / "plain", "one"),
                lambda model: model.load_adapter(self.folder, "two"),
            ),
            "PeftModel.load_adapter, same name": (
                PeftModel.from_pretrained(copy.deepcopy(clip), folder / "plain", "one", is_trainable=True),
                lambda model: model.load_adapter(self.folder, "one", is_trainable=True),
            ),
            "CLIPModel.load_adapter": (copy.deepcopy(clip), lambda model: model.load_adapter(str(self.folder))),
            "AutoPeftModel.from_pretrained": (None, lambda _: AutoPeftModel.from_pretrained(self.folder)),
            "anprompt info": (None, lambda _: describe(locate(str(self.folder)))),
        }
        self.folder.mkdir()
        self.fresh = {name: copy.deepcopy(model) for name, (model, _) in self.loading.items()}
        self.before = {name: Snapshot(model) for name, (model, _) in self.loading.items() if model is not None}

    def _files(self, folder: Path) -> tuple[bytes, bytes]:
        return (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()

    def try_one(self, method: str, config: bytes, tensors: bytes) -> None:
        """Load one example and count what happened."""
        (self.folder / CONFIG).write_bytes(config)
        (self.folder / WEIGHTS).write_bytes(tensors)
        model, load = self.loading[method]
        try:
            with time_limit():
                result = load(model)
        except DOCUMENTED as error:
            full = self.counts.total() % FULL == 0
            wrong = model is not None and not self.before[method].same(full)
            outcome = "refused, and the model changed" if wrong else "refused"
            self._count(method, outcome, wrong, error, config, tensors)
        except BaseException as error:
            self._count(method, f"{type(error).__name__}", True, error, config, tensors)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            wrong = model is not None and not self._is_loaded(
                method, result if isinstance(result, PeftModel) else model
            )
            self._count(method, "loaded, and tensors changed" if wrong else "loaded", wrong, None, config, tensors)
            if model is not None:
                self.loading[method] = (copy.deepcopy(self.fresh[method]), load)
                self.before[method] = Snapshot(self.loading[method][0])

    def _is_loaded(self, method: str, model: Any) -> bool:
        """Whether base and other adapters are what they were, and the new adapter is what the file holds."""
        name = "two" if method == "PeftModel.load_adapter" else "one" if "same" in method else "default"
        file = load_file(self.folder / WEIGHTS)
        loaded = get_peft_model_state_dict(model, adapter_name=name)
        plain = {key.removeprefix("base_model.model."): value for key, value in file.items()}
        ours = {key.removeprefix("base_model.model."): value for key, value in loaded.items()}
        if plain.keys() != ours.keys():
            return False
        if not all(
            value.isfinite().all() and torch.equal(value.to(ours[key].dtype), ours[key])
            for key, value in plain.items()
        ):
            return False
        now = {_base_name(key): value for key, value in model.state_dict().items() if "anprompt_" not in key}
        return all(torch.equal(value, now[key]) for key, value in self.base_values.items())

    def _count(
        self, method: str, outcome: str, wrong: bool, error: BaseException | None, config: bytes, tensors: bytes
    ) -> None:
        self.counts[f"{method}: {outcome}"] += 1
        if wrong and len(self.failures) < 50:
            kept = self.folder.parent / "failures" / str(len(self.failures))
            kept.mkdir(parents=True)
            (kept / CONFIG).write_bytes(config)
            (kept / WEIGHTS).write_bytes(tensors)
            self.failures.append(f"{method}: {outcome}: {error!r}: {kept}")


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer than any load of a tiny adapter."""

    def stop(*_: Any) -> None:
        raise TimeoutError("hang")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def fuzz(fuzzer: Fuzzer, examples: int, number: int = 0) -> None:
    """Try about that many examples, equal ones for equal numbers."""
    often = [name for name in fuzzer.loading for _ in range(1 if name.startswith("Auto") else 8)]

    @seed(number)
    @settings(
        max_examples=-(-examples // MUTANTS),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        config, tensors = sound = fuzzer.sound[data.draw(st.sampled_from(sorted(fuzzer.sound)))]
        changes_config = data.draw(st.booleans())
        loading = [name for name in often if not (changes_config and name in READS_NO_CONFIG)]
        if changes_config:
            config = data.draw(configurations(config))
        else:
            tensors = data.draw(weights(tensors))
        rng = random.Random(data.draw(st.integers(0, 2**48)))
        fuzzer.try_one(rng.choice(loading), config, tensors)
        for number in range(MUTANTS - 1):
            of_what = sound if number % 3 else (config, tensors)
            mutant = mutated(of_what[not changes_config], rng)
            method = rng.choice(loading)
            fuzzer.try_one(method, *((mutant, sound[1]) if changes_config else (sound[0], mutant)))

    with warnings.catch_warnings(), patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        warnings.simplefilter("ignore")
        run()


def _shape_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Plain attributes, the keys or items of collections, and the identity of what else there is."""
    return {name: _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(map(str, value))
    if isinstance(value, (dict, list)):
        return [str(each) for each in value if not isinstance(each, nn.Module)]
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
