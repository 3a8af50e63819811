"""A text denoiser: what it draws, learns, saves and refuses."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPModel, CLIPTokenizer

import denoised
import denoised_controls
from anprompt_cli import main as command_line
from anprompt_peft.denoising import Denoising, load_denoised, save_denoiser, similarity, train_denoiser
from anprompt_peft.denoising.grammar import FORMS, KINDS, SLOT, Grammar
from anprompt_peft.denoising.train import TARGETS, Texts
from anprompt_peft.evaluation.robustness.phrasing import HELD_OUT
from anprompt_peft.evaluation.robustness.texts import WORDS
from anprompt_peft.publish.non_finite import NonFiniteError
from helpers import WEIGHTS, adapted, make_clip

CONFIG = "adapter_config.json"
SHORT = Denoising(steps=4, batch_size=4, rank=2)
VOCABULARY = ["apple", "basket", "candle", "door", "engine"]


@pytest.fixture(scope="module")
def denoiser(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoiser") / "adapter"
    save_denoiser(train_denoiser(make_clip(), tokenizer, SHORT), folder, SHORT)
    return folder


def text_features(clip: Any, tokenizer: CLIPTokenizer) -> Tensor:
    """Of two texts."""
    tokens = tokenizer(["a photo of a cat.", "look, a dog"], padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features: Tensor = clip.get_text_features(input_ids=tokens).pooler_output
    return features


# the texts


def test_pairs_share_their_phrase() -> None:
    """Both texts have the name in them, and every form with an open slot is filled."""
    grammar, rng = Grammar(VOCABULARY, lambda text: True), random.Random(0)
    for _ in range(300):
        clean, noisy = grammar.pair(rng)
        _, form = max((form, form) for form in FORMS["templates"] if clean.startswith(form.partition("{}")[0]))
        phrase = clean.removeprefix(form.partition("{}")[0]).removesuffix(".")
        assert phrase in noisy
        assert clean.rstrip(".") != noisy
        assert not re.search(r"[\[\]{}]", clean + noisy)


def test_long_noise_is_drawn_again_or_left_out() -> None:
    rng = random.Random(0)
    short = Grammar(VOCABULARY, lambda text: len(text) < 60)
    assert all(len(pair.noisy) < 60 for pair in (short.pair(rng) for _ in range(100)))
    nothing = Grammar(VOCABULARY, lambda text: False).pair(rng)
    assert nothing.noisy == nothing.clean


def test_every_name_is_read(tokenizer: CLIPTokenizer, clip: CLIPModel) -> None:
    """No text is cut, so the end of text is in each row."""
    for tokens in Texts(clip, tokenizer).draw(50, random.Random(0)):
        assert (tokens == tokenizer.eos_token_id).any(dim=1).all()


def test_the_forms_are_well_formed() -> None:
    assert set(FORMS) == {"templates", "phrases", "carriers", "clauses", "connectives", "determiners"}
    for kind, forms in FORMS.items():
        assert all(form.count("{}") == (kind in ("templates", "phrases", "carriers")) for form in forms), kind
    slots = {slot for forms in FORMS.values() for form in forms for slot in SLOT.findall(form)}
    assert slots == {"word", "words", "thing", "number", "nonwords"}
    assert all(sum(word in kind for kind in KINDS) for word in ("sentence", "behind", "front", "around"))


def plain(form: str) -> str:
    return " ".join(re.sub(r"[^a-z{} ]", "", form.lower()).split())


def test_no_form_is_one_that_robustness_is_measured_with() -> None:
    held_out = {plain(form) for form in (*HELD_OUT, *chain(*WORDS.values()))} - {""}
    own = {plain(form) for form in chain(*FORMS.values())}
    assert len(held_out) > 90
    assert not held_out & own
    within = [(ours, theirs) for ours in own for theirs in held_out if ours in theirs or theirs in ours]
    assert not [pair for pair in within if min(len(each.split()) for each in pair) > 2]


# the training


def test_the_loss_falls_and_a_seed_gives_the_same_bits(tokenizer: CLIPTokenizer) -> None:
    losses: list[float] = []
    how = Denoising(steps=40, batch_size=8, rank=8, learning_rate=0.01)
    first = train_denoiser(make_clip(), tokenizer, how, lambda step, noisy, clean: losses.append(noisy))
    assert len(losses) == how.steps
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    torch.rand(3)  # what was drawn before does not matter
    again = train_denoiser(make_clip(), tokenizer, how)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    other = train_denoiser(make_clip(), tokenizer, Denoising(**{**vars(how), "seed": 2, "steps": 1}))
    assert not torch.equal(next(iter(lora(first).values())), next(iter(lora(other).values())))


def lora(model: PeftModel) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.state_dict().items() if "lora_A" in name}


def test_training_is_what_the_documentation_says(tokenizer: CLIPTokenizer) -> None:
    """Three steps written out: updated weights W + B A / sqrt(r), the loss, and rates of 0, 1 and 1/2 of the peak."""
    how, clip = Denoising(steps=3, batch_size=3, rank=2, hold=0.5), make_clip(dtype=torch.float64)
    seen: list[tuple[float, float]] = []
    model = train_denoiser(make_clip(dtype=torch.float64), tokenizer, how, lambda _, *terms: seen.append(terms))
    config, other = LoraConfig(r=how.rank, use_rslora=True, target_modules=TARGETS), make_clip(dtype=torch.float64)
    torch.manual_seed(how.seed)
    start = get_peft_model(other, config).state_dict()
    updates = {name: weight.clone().requires_grad_() for name, weight in start.items() if "lora_" in name}
    names = [name.removesuffix(".lora_A.default.weight") for name in updates if "lora_A" in name]
    optimizer = torch.optim.AdamW(updates.values(), weight_decay=0.0)
    texts, rng, weights = Texts(clip, tokenizer), random.Random(how.seed), clip.state_dict()

    def features(tokens: Tensor, updated: bool = True) -> Tensor:
        changed = dict(weights)
        for name in names if updated else ():
            place = f"{name.removeprefix('base_model.model.')}.weight"
            product = updates[f"{name}.lora_B.default.weight"] @ updates[f"{name}.lora_A.default.weight"]
            changed[place] = weights[place] + product / how.rank**0.5
        out = functional_call(clip.text_model, at(changed, "text_model."), (tokens,)).pooler_output
        return out @ weights["text_projection.weight"].T

    for step, share in enumerate((0.0, 1.0, 0.5)):
        clean, noisy = texts.draw(how.batch_size, rng)
        with torch.no_grad():
            target = features(clean, updated=False)
        terms = [1 - torch.cosine_similarity(features(tokens), target).mean() for tokens in (noisy, clean)]
        assert seen[step] == pytest.approx([float(term.detach()) for term in terms], abs=1e-10)
        optimizer.zero_grad()
        (terms[0] + how.hold * terms[1]).backward()
        torch.nn.utils.clip_grad_norm_(updates.values(), 1.0)
        optimizer.param_groups[0]["lr"] = share * how.learning_rate
        optimizer.step()
    for name, expected in updates.items():
        torch.testing.assert_close(model.state_dict()[name], expected.detach(), rtol=0, atol=1e-10)


def at(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def test_only_the_attention_of_the_text_encoder_is_trained(tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    clip = make_clip()
    before = {name: weight.clone() for name, weight in clip.state_dict().items()}
    with torch.no_grad():
        images = clip.get_image_features(pixels).pooler_output
    model = train_denoiser(clip, tokenizer, SHORT)
    with torch.no_grad():
        assert torch.equal(clip.get_image_features(pixels).pooler_output, images)
    for name, weight in clip.state_dict().items():
        if "lora_" in name:
            assert "text_model.encoder.layers" in name
        else:
            assert torch.equal(weight, before[name.replace(".base_layer", "")]), name
    assert len([name for name, each in model.named_parameters() if each.requires_grad]) == 2 * 4 * 4


def test_similarity_is_of_texts_that_no_training_draws(tokenizer: CLIPTokenizer, denoiser: Path) -> None:
    frozen = make_clip()
    found = similarity(frozen, load_denoised(make_clip(), denoiser), tokenizer, count=8)
    same = similarity(frozen, frozen, tokenizer, count=8)
    assert same.noisy == same.frozen == found.frozen
    assert same.clean == pytest.approx(1, abs=1e-6)
    assert found.noisy != found.frozen
    with pytest.raises(ValueError, match="seed"):
        Denoising(seed=2**32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0 must be an integer from 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5 must be an integer"),
        ({"rank": True}, "rank=True must be an integer"),
        ({"seed": -1}, "seed=-1 must be an integer from 0"),
        ({"learning_rate": 0}, "learning_rate=0 must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"hold": -1.0}, r"hold=-1\.0 must be a finite number from 0"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoising(**wrong)


def test_other_models_are_refused(tokenizer: CLIPTokenizer, denoiser: Path) -> None:
    with pytest.raises(TypeError, match="not CLIPTextModel"):
        train_denoiser(make_clip().text_model, tokenizer, SHORT)
    with pytest.raises(TypeError, match="without adapters"):
        train_denoiser(adapted().get_base_model(), tokenizer, SHORT)
    with pytest.raises(TypeError, match="without adapters"):
        load_denoised(PeftModel.from_pretrained(make_clip(), denoiser).get_base_model(), denoiser)
    with pytest.raises(ValueError, match="rank=33 must not exceed the width of the text encoder, 32"):
        train_denoiser(make_clip(), tokenizer, Denoising(rank=33))


def test_a_loss_that_is_not_finite_ends_the_training(tokenizer: CLIPTokenizer) -> None:
    clip = make_clip()
    with torch.no_grad():
        clip.text_projection.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1 is not finite.*learning_rate=0\.005"):
        train_denoiser(clip, tokenizer, SHORT)


# the file


def test_stock_peft_loads_it_without_this_package(
    denoiser: Path, clip_folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    program = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoTokenizer, CLIPModel
clip = PeftModel.from_pretrained(CLIPModel.from_pretrained({str(clip_folder)!r}), {str(denoiser)!r}).merge_and_unload()
assert type(clip) is CLIPModel and "anprompt_peft" not in sys.modules
clip.save_pretrained({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    stock = text_features(CLIPModel.from_pretrained(tmp_path), tokenizer)
    torch.testing.assert_close(text_features(load_denoised(make_clip(), denoiser), tokenizer), stock)
    assert not torch.allclose(text_features(make_clip(), tokenizer), stock)


def test_the_loaded_clip_is_a_plain_one(denoiser: Path) -> None:
    clip = make_clip()
    plain = load_denoised(clip, denoiser)
    assert plain is clip
    assert type(plain) is CLIPModel
    assert plain.state_dict().keys() == make_clip().state_dict().keys()


def test_the_files_name_nothing_of_this_machine(clip_folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    save_denoiser(train_denoiser(clip, tokenizer, SHORT), tmp_path, SHORT)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] is None
    card = (tmp_path / "README.md").read_text()
    assert str(clip_folder) not in card
    assert all(f"- {name}: {value}" in card for name, value in vars(SHORT).items())
    assert "a CLIP that is not on the Hub" in card


def edited(source: Path, folder: Path, tensors: Any = None, **config: Any) -> Path:
    """A copy of a denoiser with another configuration or other tensors."""
    folder.mkdir()
    record = json.loads((source / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**record, **config}))
    weights = load_file(source / WEIGHTS)
    save_file(tensors(weights) if tensors else weights, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "ANPROMPT"}, "is not the configuration of a LoRA adapter"),
        ({"use_dora": True}, "a denoiser has no use_dora=True"),
        ({"modules_to_save": ["visual_projection"]}, "no modules_to_save="),
        ({"init_lora_weights": "pissa"}, "no init_lora_weights='pissa'"),
        ({"r": 3}, r"is \[2, 32\], and must be \[3, 32\]"),
        ({"r": 0}, "r=0 must be an integer"),
    ],
)
def test_other_configurations_are_refused(
    config: dict[str, Any], message: str, denoiser: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_denoised(make_clip(), edited(denoiser, tmp_path / "edited", **config))


def broken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    next(iter(weights.values()))[0, 0] = float("nan")
    return weights


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda weights: dict(list(weights.items())[1:]), "is missing, and must be"),
        (lambda weights: {**weights, "base_model.model.visual_projection.lora_A.weight": torch.ones(2, 2)}, "absent"),
        (broken, "is not finite"),
    ],
)
def test_other_tensors_are_refused(tensors: Any, message: str, denoiser: Path, tmp_path: Path) -> None:
    clip = make_clip()
    with pytest.raises(ValueError, match=message):
        load_denoised(clip, edited(denoiser, tmp_path / "edited", tensors))
    assert clip.state_dict().keys() == make_clip().state_dict().keys()


def test_denoisers_of_other_clips_pickles_and_nothing_are_refused(denoiser: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers.*is \[2, 32\], and must be \[2, 40\].*anprompt denoise"):
        load_denoised(make_clip(hidden_size=40), denoiser)
    with pytest.raises(ValueError, match=r"layers\.3\..*must be absent"):
        load_denoised(make_clip(num_hidden_layers=3), denoiser)
    model = get_peft_model(make_clip(), LoraConfig(target_modules=TARGETS))
    model.save_pretrained(str(tmp_path / "pickled"))
    (tmp_path / "pickled" / WEIGHTS).rename(tmp_path / "pickled" / "adapter_model.bin")
    with pytest.raises(ValueError, match=f"there is no {WEIGHTS} in it"):
        load_denoised(make_clip(), tmp_path / "pickled")
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        load_denoised(make_clip(), tmp_path / "none")
    with pytest.raises(ValueError, match="revision='v1' is for denoisers on the Hub"):
        load_denoised(make_clip(), denoiser, "v1")


# the command


def run(*options: Any) -> int:
    return command_line(["denoise", *map(str, options)])


QUICK = ("--steps", 3, "--batch-size", 2, "--rank", 2, "--device", "cpu")


def test_the_command_writes_what_the_function_does(
    clip_folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It loads the CLIP once, and measures with it as with freshly loaded ones."""
    with patch.object(CLIPModel, "from_pretrained", wraps=CLIPModel.from_pretrained) as load:
        assert run(clip_folder, "--output", tmp_path / "new", *QUICK, "--seed", 5) == 0
    assert load.call_count == 1
    output = capsys.readouterr().out
    plain, denoised = (CLIPModel.from_pretrained(clip_folder) for _ in range(2))
    found = similarity(plain, load_denoised(denoised, tmp_path / "new"), tokenizer)
    assert f"plain ones: {found.frozen:.3f} before, {found.noisy:.3f} with the denoiser" in output
    assert f"keep {found.clean:.3f}." in output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    how = Denoising(steps=3, batch_size=2, rank=2, seed=5)
    save_denoiser(train_denoiser(CLIPModel.from_pretrained(clip_folder), tokenizer, how), tmp_path / "own", how)
    own, theirs = load_file(tmp_path / "own" / WEIGHTS), load_file(tmp_path / "new" / WEIGHTS)
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_info_says_what_it_is(denoiser: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["info", str(denoiser)]) == 0
    output = capsys.readouterr().out
    assert "LoRA, as a text denoiser is" in output
    assert re.search(r"^parameters +2,048 trained, 0 frozen \(F32\)$", output, re.MULTILINE)
    assert command_line(["predict", str(denoiser), str(denoiser / "README.md")]) == 2
    assert "an adapter of the method 'LORA', not 'ANPROMPT'" in capsys.readouterr().err


def test_wrong_options_are_refused(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], denoiser: Path
) -> None:
    def refused(*options: Any) -> str:
        assert run(*options) == 2
        return capsys.readouterr().err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty" in refused(clip_folder, "--output", tmp_path / "full", *QUICK)
    assert "is not a valid repository name" in refused(clip_folder, "--output", tmp_path / "a", "--push-to-hub", "x")
    assert "--rank 99 must not exceed" in refused(clip_folder, "--output", tmp_path / "a", "--rank", 99)
    assert "--learning-rate 0.0 must be" in refused(clip_folder, "--output", tmp_path / "a", "--learning-rate", 0)
    assert "is an adapter" in refused(denoiser, "--output", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_interruption_leaves_nothing(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anprompt_peft.denoising.loading.write_card", interrupted)
    assert run(clip_folder, "--output", tmp_path / "new", *QUICK) == 130
    assert not list(tmp_path.iterdir())


# the embedded one


@pytest.mark.slow
def test_the_embedded_denoiser_helps_on_development_data() -> None:
    """Phrasing costs 62 % at most of what it does without, and plain ones keep their accuracy within a point."""
    for table in denoised.measured([None, denoised.DENOISER]).values():
        (plain, kept), *others = table.values()
        before, after = (
            own - sum(each) / len(each) for own, each in zip((plain, kept), zip(*others, strict=True), strict=True)
        )
        assert after <= 0.62 * before
        assert kept >= plain - 1


def test_closed_forms_map_noise_away_and_keep_what_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(200, 8, generator=generator)
    axis = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    noisy = clean + 3 * torch.randn(200, 1, generator=generator) * axis
    removed = denoised_controls.without_noise(clean, noisy, 1)
    torch.testing.assert_close(axis @ removed, torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy @ removed, clean @ removed, atol=1e-4, rtol=0)
    torch.testing.assert_close(denoised_controls.ridge(clean, clean, 1.0), torch.eye(8))
    mapped = noisy @ denoised_controls.ridge(clean, noisy, 0.01)
    assert (mapped - clean).pow(2).mean() < 0.2 * (noisy - clean).pow(2).mean()
    assert torch.dist(denoised_controls.ridge(clean, noisy, 1e6), torch.eye(8)) < 1e-4


def test_every_second_name_is_that_of_a_pictograph() -> None:
    grammar = denoised_controls.Compound(["alpha", "beta"], lambda text: True)
    rng, names = random.Random(0), denoised_controls.pictograph_names()
    drawn = [grammar.pair(rng).clean for _ in range(200)]
    assert 60 < sum(any(name in text for name in names) for text in drawn) < 140
