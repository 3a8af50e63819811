"""The tiny CLIP of the digits example: its data, its pre-training, and the shipped weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from captions import captions_for
from glyphs import BITMAP, CHARS, DIGITS, Deformation, draw, make_bank
from handwriting import CLASS_NAMES, SPLITS, TEMPLATE, load_split, select_classes, split_indices
from pretrain import Recipe, contrastive_loss, main, pretrain, recipe_accuracies, run
from tokenization import train_tokenizer
from zeroshot import zero_shot_accuracy

TINY_CLIP = Path(__file__).resolve().parents[1] / "examples" / "digits" / "tiny_clip"
MAX_BYTES = 6_000_000
ZERO_SHOT_BAND = {"all": (0.60, 0.78), "0-4": (0.70, 0.92), "5-9": (0.70, 0.92)}
SPLIT_ROWS = {"recipe": [3, 5, 7, 9, 13], "train": [6, 15, 24, 25, 28], "test": [0, 1, 2, 4, 8]}
TINY = Recipe(steps=3, batch_size=8, hidden=16, layers=1, heads=2, mlp=16, projection=16)


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    return make_bank(DIGITS, fonts=("DejaVuSans", "cmr10"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-step pre-training, saved."""
    folder = tmp_path_factory.mktemp("pretrain") / "model"
    run(folder, TINY, seed=0)
    return folder


def test_splits_are_disjoint_stratified_and_deterministic() -> None:
    labels = load_digits().target
    parts = split_indices(labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    for name, share in zip(SPLITS, (0.4, 0.2, 0.4), strict=True):
        counts = np.bincount(labels[parts[name]], minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(labels), atol=1.5)
        np.testing.assert_array_equal(parts[name], split_indices(labels)[name])


def test_split_rows_are_the_ones_reported_figures_were_taken_on() -> None:
    first = {name: rows[:5].tolist() for name, rows in split_indices(load_digits().target).items()}
    assert first == SPLIT_ROWS


def test_images_keep_the_ink() -> None:
    images, labels = load_split("train")
    assert len(images) == len(labels) == 359
    assert labels.dtype == np.int64
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    counts = load_digits().images[split_indices(load_digits().target)["train"]]
    means = np.array([np.asarray(image).mean() / 255 for image in images])
    np.testing.assert_allclose(means, counts.mean(axis=(1, 2)) / 16, atol=0.03)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'valid'.*recipe, train, test"):
        load_split("valid")


def test_select_classes_renumbers() -> None:
    images, labels = load_split("train")
    kept, renumbered = select_classes(images, labels, [7, 3])
    assert len(kept) == (labels == 7).sum() + (labels == 3).sum()
    np.testing.assert_array_equal(renumbered, (labels[np.isin(labels, [3, 7])] == 3).astype(np.int64))
    with pytest.raises(ValueError, match="repeat"):
        select_classes(images, labels, [1, 1])


def test_glyphs_follow_the_seed(bank: torch.Tensor) -> None:
    chars = np.arange(10).repeat(3)
    first, again, other = (draw(bank, chars, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.dtype == torch.uint8
    assert first.shape == (30, BITMAP, BITMAP)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_glyphs_look_like_the_real_digits(bank: torch.Tensor) -> None:
    """Ink fills the height, and there is about as much of it, as in the recipe split."""
    real = np.stack([np.asarray(image)[..., 0] for image in load_split("recipe")[0]]) / 255
    drawn = draw(bank, np.arange(500) % 10, np.random.default_rng(0)).numpy() / 255
    assert abs(real.mean() - drawn.mean()) < 0.03
    assert abs(real.std() - drawn.std()) < 0.05
    assert (drawn.max(axis=2) > 0.1).mean() > 0.95


def test_an_undeformed_glyph_keeps_its_shape(bank: torch.Tensor) -> None:
    still = Deformation(
        rotation=0, shear=0, elastic=0, lift=0, width=(20, 20), margin=0, ink=(0.3, 0.3), blur=0, noise=0
    )
    zero, one = draw(bank[:, :1], np.array([0, 1]), np.random.default_rng(0)).float() / 255
    plain = draw(bank[:, :1], np.array([0, 1]), np.random.default_rng(0), still).float() / 255
    assert plain[0, 12:20, 12:20].mean() < 0.2, "a zero is hollow"
    assert plain[1, :, 13:19].mean() > 0.6, "a one has a stem"
    assert not torch.equal(plain[0], zero)
    assert not torch.equal(plain[1], one)


def test_captions_name_the_character() -> None:
    assert TEMPLATE.format("seven") in captions_for("7")
    assert TEMPLATE.format("7") in captions_for("7")
    assert "a photo of the capital letter A." in captions_for("A")
    assert "a photo of the small letter a." in captions_for("a")
    texts = [caption.lower() for char in CHARS for caption in captions_for(char)]
    assert len(texts) == len(set(texts)), "no caption fits two characters"
    with pytest.raises(ValueError, match="'é'"):
        captions_for("é")


def test_tokenizer_is_complete_and_has_clips_conventions() -> None:
    tokenizer = train_tokenizer(["a photo of the digit two."], merges=20, context=32)
    ids = tokenizer("A Phtoo of 东京, naïve 🙂!")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1, "nothing is unknown"
    assert tokenizer("DIGIT")["input_ids"] == tokenizer("digit")["input_ids"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1


def test_equal_classes_are_positives() -> None:
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    grouped = contrastive_loss(logits, torch.tensor([4, 4, 2]))
    apart = contrastive_loss(logits, torch.tensor([4, 5, 2]))
    entropy = 2 / 3 * np.log(2)
    assert grouped.item() == pytest.approx(entropy, abs=1e-3)
    assert contrastive_loss(-logits, torch.tensor([4, 4, 2])) > grouped
    assert apart.item() == pytest.approx(entropy, abs=1e-3)


def test_pretraining_reloads_through_the_auto_classes(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    images, labels = load_split("train")
    try:
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except ImportError:  # older releases of transformers ask for torchvision here
        image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = image_processor(images=images[:2], return_tensors="pt")
    assert isinstance(model, CLIPModel)
    assert pixels["pixel_values"].shape == (2, 3, 32, 32)
    assert torch.equal(pixels["pixel_values"], processor(images=images[:2], return_tensors="pt")["pixel_values"])
    assert tokenizer("a photo.")["input_ids"] == processor.tokenizer("a photo.")["input_ids"]
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert (text.eos_token_id, text.vocab_size) == (len(tokenizer) - 1, len(tokenizer))
    assert tokenizer.model_max_length == text.max_position_embeddings
    record = json.loads((folder / "training.json").read_text())
    assert record["zero_shot_accuracy_recipe_split"] == pytest.approx(recipe_accuracies(model, processor))
    assert record["parameters"] == model.num_parameters()
    accuracy = zero_shot_accuracy(model, processor, images[:20], labels[:20], CLASS_NAMES, TEMPLATE)
    assert 0 <= accuracy <= 1


def test_pretraining_follows_the_seed(folder: Path) -> None:
    saved = AutoModel.from_pretrained(folder).state_dict()
    again = pretrain(TINY, seed=0)[0].state_dict()
    other = pretrain(TINY, seed=1)[0].state_dict()
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert any(not torch.equal(saved[name], other[name]) for name in saved)


def test_pretraining_leaves_global_randomness_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pretrain(replace(TINY, steps=1), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_output_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_zero_shot_input_is_checked(folder: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    images, labels = load_split("train")
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        zero_shot_accuracy(model, processor, images[:2], labels[:3], CLASS_NAMES, TEMPLATE)
    with pytest.raises(ValueError, match=r"no \{\}"):
        zero_shot_accuracy(model, processor, images[:2], labels[:2], CLASS_NAMES, "a photo")
    with pytest.raises(ValueError, match="no images"):
        zero_shot_accuracy(model, processor, [], labels[:0], CLASS_NAMES, TEMPLATE)


def test_shipped_model_has_the_recorded_accuracy() -> None:
    assert sum(path.stat().st_size for path in TINY_CLIP.iterdir()) < MAX_BYTES
    record = json.loads((TINY_CLIP / "training.json").read_text())
    model, processor = AutoModel.from_pretrained(TINY_CLIP), AutoProcessor.from_pretrained(TINY_CLIP)
    measured = recipe_accuracies(model, processor)
    for name, (low, high) in ZERO_SHOT_BAND.items():
        assert measured[name] == pytest.approx(record["zero_shot_accuracy_recipe_split"][name], abs=0.005)
        assert low <= measured[name] <= high
    assert Recipe(**record["recipe"]) == Recipe()
    card = (TINY_CLIP / "README.md").read_text()
    for accuracy in record["zero_shot_accuracy_recipe_split"].values():
        assert f"{100 * accuracy:.1f} %" in card


@pytest.mark.slow
def test_the_default_recipe_makes_such_a_model_again(tmp_path: Path) -> None:
    record = run(tmp_path / "model", Recipe(), seed=0)
    accuracies = record["zero_shot_accuracy_recipe_split"]
    for name, (low, high) in ZERO_SHOT_BAND.items():
        assert low <= accuracies[name] <= high, accuracies
