"""The transform: equal to CLIP's processor, random where it should be, and training on a folder with it."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    SiglipImageProcessorPil,
    Trainer,
    TrainingArguments,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import (
    ClipTransform,
    CorruptImageError,
    check_images,
    class_names_of,
    few_shot,
    load_image_data,
    select_classes,
)
from anprompt_peft.data import transform as transforms
from anprompt_peft.data.processor import load_image_processor
from anprompt_peft.data.transform import random_box
from base_to_new import TINY_CLIP
from export_folder import export
from handwriting import TEMPLATE
from pictures import assert_refused, labelled

PHOTO = Image.fromarray(load_sample_images().images[0])
SMALL = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def processed(processor: Any, images: Any) -> torch.Tensor:
    """What a processor makes of images."""
    return processor(images=images, return_tensors="pt")["pixel_values"]


def transformed(processor: Any, images: list[Image.Image], augment: bool = False) -> torch.Tensor:
    """What the transform makes of them."""
    return ClipTransform(processor, augment=augment)({"image": images})["pixel_values"]


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (224, 224), (301, 299), (640, 30), (7, 5), (1, 1), (90, 224)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 33}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 24}},
        {"size": {"height": 40, "width": 50}, "crop_size": {"height": 40, "width": 40}, "image_mean": [0.1, 0.5, 0.9]},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_std": [1.0, 2.0, 3.0]},
    ],
    ids=["clip", "odd", "padded", "exact", "unit range", "levels", "symmetric"],
)
def test_evaluation_equals_clips_processor_bit_for_bit(settings: dict[str, Any], size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil(**settings)
    images = [PHOTO.resize(size), PHOTO]
    pixels = ClipTransform(processor)({"image": images, "label": [1, 0]})
    assert pixels["pixel_values"].dtype == torch.float32
    assert torch.equal(pixels["pixel_values"], processed(processor, images).float())
    assert pixels["labels"] == [1, 0]


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (7, 400), (9, 500), (500, 9), (90, 350)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 224}},
        {"size": {"shortest_edge": 90}, "crop_size": {"height": 64, "width": 90}, "resample": 1},
        {"size": {"shortest_edge": 97}, "crop_size": {"height": 120, "width": 121}, "resample": 2},
        {"size": {"height": 400, "width": 91}, "crop_size": {"height": 50, "width": 100}, "resample": 0},
    ],
    ids=["bicubic", "lanczos", "padded", "exact"],
)
def test_of_elongated_images_only_what_is_shown_is_resized(
    settings: dict[str, Any], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor, which resizes the whole image, gives the same levels, up to rounding."""
    processor = CLIPImageProcessorPil(**settings, do_rescale=False, do_normalize=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    monkeypatch.setattr(transforms, "MAX_PIXELS", 0)
    torch.testing.assert_close(transformed(processor, [image]), processed(processor, image).float(), rtol=0, atol=1)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1_000_000), (30, 1_000_000)])
def test_thin_images_take_little_memory(size: tuple[int, int], augment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    areas, resize = [], Image.Image.resize

    def spy(image: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(image, size, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", spy)
        pixels = transformed(CLIPImageProcessorPil(), [Image.new("RGB", size, (200, 30, 90))], augment)
    assert 0 < max(areas) <= 224 * 224
    assert torch.equal(pixels, processed(CLIPImageProcessorPil(), Image.new("RGB", (9, 9), (200, 30, 90))))


def test_other_modes_and_a_saved_processor_are_taken_as_they_are(clip_folder: Path) -> None:
    images = [PHOTO.convert(mode) for mode in ("L", "P", "LA", "RGBA", "CMYK", "1")]
    assert torch.equal(transformed(CLIPImageProcessorPil(), images), processed(CLIPImageProcessorPil(), images))
    saved = CLIPProcessor.from_pretrained(clip_folder)
    pixels = ClipTransform(saved)({"image": [PHOTO]})
    assert set(pixels) == {"pixel_values"}
    assert torch.equal(pixels["pixel_values"], processed(saved, PHOTO))


@pytest.mark.parametrize("side", [24, 224])
def test_images_for_siglip_are_squeezed_as_its_processor_does(side: int, tmp_path: Path) -> None:
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    images = [PHOTO, PHOTO.resize((31, 200)), PHOTO.convert("L")]
    assert torch.equal(transformed(processor, images), processed(processor, images))
    processor.save_pretrained(tmp_path)
    loaded = load_image_processor(tmp_path, side)
    assert torch.equal(transformed(loaded, images), processed(processor, images))
    assert_refused(r"crop_size=.* does not fit the vision model", load_image_processor, tmp_path, side + 1)


@pytest.mark.parametrize(
    "settings",
    [{"do_resize": False}, {"do_center_crop": False}, {"size": {"shortest_edge": 20, "longest_edge": 30}}],
)
def test_processors_that_do_something_else_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("needed are both steps", ClipTransform, CLIPImageProcessorPil(**settings))


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"size": {"shortest_edge": 120_000}}, "size={'shortest_edge': 120000} must have whole numbers from 1 to 4096"),
    ({"size": {"height": -224, "width": 224}}, "size=.* must have whole numbers"),
    ({"size": {"shortest_edge": 224.5}}, "size=.*224.5"),
    ({"crop_size": {"height": 10**6, "width": 224}}, "crop_size=.* must have whole numbers"),
    ({"crop_size": {"height": True, "width": 224}}, "crop_size=.*True"),
    ({"resample": 99}, r"resample=99 must be one of Pillow's filters: 0 \(nearest\), "),
    ({"image_mean": [0.5, 0.5]}, r"image_mean=.* must be 3 finite numbers"),
    ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean=.*nan"),
    ({"image_mean": ["0.5", 0.5, 0.5]}, "image_mean="),
    ({"image_mean": [1e300, 0.5, 0.5]}, "image_mean=.* too large"),
    ({"image_std": [0.0, 0.5, 0.5]}, "image_std=.* must be 3 finite numbers above 0"),
    ({"image_std": [1e-320, 0.5, 0.5]}, "image_std=.* too large"),
    ({"image_std": -1.0}, "image_std=.* above 0"),
    ({"rescale_factor": float("inf")}, "rescale_factor=inf must be a finite number above 0"),
    ({"rescale_factor": "1"}, "rescale_factor='1'"),
]


@pytest.mark.parametrize(("settings", "wanted"), BAD_VALUES)
def test_values_that_cannot_be_computed_with_are_refused(settings: dict[str, Any], wanted: str) -> None:
    processor = CLIPImageProcessorPil()
    for name, value in settings.items():
        setattr(processor, name, value)
    assert_refused(wanted, ClipTransform, processor)


BAD_FILES: list[tuple[dict[str, Any], str]] = [
    *((change, wanted) for change, wanted in BAD_VALUES if "nan" not in wanted and "inf" not in wanted),
    ({"image_std": [float("nan"), 1, 1]}, "holds the number nan in 'image_std', which is not finite"),
    ({"size": "large"}, "size='large' must be of type"),
    ({"size": {"width": 224}}, "size must have one of"),
    ({"size": {"shortest_edge": 1}}, "size={'shortest_edge': 1} is smaller than the crop of 224 pixels"),
    ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "size=.* must have a shortest_edge, or a height and a"),
    ({"size": {"shortest_edge": 448}, "crop_size": 448}, "crop_size=.*448.* does not fit .* whose image_size is 224"),
    ({"crop_size": {"height": 224, "width": 196}}, "crop_size=.*196"),
    ({"do_rescale": False}, "do_rescale=False: a CLIP needs this step"),
    ({"do_rescale": None}, "do_rescale=None must be of type bool"),
    ({"do_normalize": 0}, "do_normalize=0 must be of type bool"),
    ({"do_center_crop": False}, "do_center_crop=False"),
    ({"do_pad": True, "pad_size": {"height": 10**6, "width": 10**6}}, "do_pad=True is nothing that"),
    ({"data_format": "channels_last"}, "data_format='channels_last' is nothing that"),
    ({"device": "meta"}, "device='meta'"),
    ({"resample": "bicubic"}, "resample='bicubic' must be of type int"),
    ({"resize": "mine"}, "'resize' is not a setting of an image processor"),
    ({"image_processor_type": "ViTImageProcessor"}, "type='ViTImageProcessor' must be CLIPImageProces"),
    ({"rescale_factor": True}, "rescale_factor=True"),
    ({"note": json.loads("[" * 20 + "]" * 20)}, "nested more than 16 levels deep"),
]


@pytest.mark.parametrize("file", [PROCESSOR_NAME, IMAGE_PROCESSOR_NAME])
@pytest.mark.parametrize(("change", "wanted"), BAD_FILES)
def test_a_file_that_is_not_of_this_clip_is_refused_by_name(
    change: dict[str, Any], wanted: str, file: str, tmp_path: Path
) -> None:
    record = {**CLIPImageProcessorPil().to_dict(), **change}
    (tmp_path / file).write_text(json.dumps({"image_processor": record} if file == PROCESSOR_NAME else record))
    assert_refused(rf"{tmp_path}/{file}.*{wanted}", load_image_processor, tmp_path, 224)


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"size": 224, "size": 225}', "\0", '"x"'])
def test_a_file_that_is_no_object_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / IMAGE_PROCESSOR_NAME).write_text(text)
    assert_refused(rf"{tmp_path}/{IMAGE_PROCESSOR_NAME}", load_image_processor, tmp_path, 224)
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps({"image_processor": text}))
    message = rf"{tmp_path}/{PROCESSOR_NAME}: image_processor: it must be an object"
    assert_refused(message, load_image_processor, tmp_path, 224)


OLD = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 224, "resample": 3,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
UNUSED = {
    "device": None, "do_pad": None, "data_format": "channels_first", "_valid_processor_keys": ["images"], "note": "x",
    "disable_grouping": None, "default_to_square": False, "do_convert_rgb": None,
}  # fmt: skip


@pytest.mark.parametrize("settings", [OLD, {**OLD, **UNUSED}, CLIPImageProcessorPil().to_dict()])
def test_files_of_earlier_releases_are_read_as_transformers_does(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / IMAGE_PROCESSOR_NAME).write_text(json.dumps(settings))
    ours, theirs = load_image_processor(tmp_path, 224), CLIPImageProcessorPil.from_pretrained(tmp_path)
    assert torch.equal(processed(ours, PHOTO), processed(theirs, PHOTO))
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert load_image_processor(tmp_path, 224).to_dict() == ours.to_dict()


def test_boxes_keep_area_ratio_and_reach_every_edge() -> None:
    boxes = np.array([random_box(400, 300) for _ in range(3000)])
    left, top, right, bottom = boxes.T
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, 400, 300)
    width, height = right - left, bottom - top
    area, ratio = width * height / 120_000, width / height
    assert 0.495 < area.min() < 0.51
    assert 0.97 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.8
    assert 1.3 < ratio.max() < 1.35
    assert abs((left + right).mean() / 2 - 200) < 4
    assert abs((top + bottom).mean() / 2 - 150) < 3


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 90), (440, 0, 560, 90)), ((90, 1000), (0, 440, 90, 560)), ((1, 1), (0, 0, 1, 1))]
)
def test_elongated_images_are_cropped_in_the_middle(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert random_box(*size) == box


def test_augmented_pixels_are_a_crop_resized_and_normalised() -> None:
    """The same random numbers, by hand and through the processor, give the same pixels; half are mirrored."""
    processor = CLIPImageProcessorPil()
    torch.manual_seed(7)
    pixels = transformed(processor, [PHOTO] * 12, augment=True)
    torch.manual_seed(7)
    mirrored = 0
    for ours in pixels:
        crop = PHOTO.resize((224, 224), Image.Resampling.BICUBIC, box=random_box(*PHOTO.size))
        if torch.rand(()) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored += 1
        expected = processor(crop, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, expected)
    assert 2 < mirrored < 10


@pytest.fixture
def same_photo() -> Dataset:
    """Sixteen times the same photo, so that only the transform can make a difference."""
    data = labelled([0, 1] * 8, images=[PHOTO.resize((80, 60))] * 16)
    return data.with_transform(ClipTransform(SMALL, augment=True))


def epochs(data: Dataset, seed: int, workers: int, count: int = 2, **options: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loader: Any = DataLoader(data, batch_size=4, num_workers=workers, generator=generator, **options)
    torch.manual_seed(seed)
    return [torch.cat([batch["pixel_values"] for batch in loader]) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_repeatable_and_never_repeats(same_photo: Dataset, workers: int) -> None:
    """The same seed and workers give the same pixels; no two images are alike over two epochs and all workers."""
    first, second = epochs(same_photo, 3, workers)
    again = epochs(same_photo, 3, workers)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, epochs(same_photo, 4, workers, count=1)[0])
    assert len({image.numpy().tobytes() for image in torch.cat([first, second])}) == 32


@pytest.mark.slow
def test_spawned_workers(same_photo: Dataset) -> None:
    """Workers that start from nothing get the transform by pickling, and the same random numbers."""
    (spawned,) = epochs(same_photo, 3, 1, count=1, multiprocessing_context=multiprocessing.get_context("spawn"))
    assert torch.equal(spawned, epochs(same_photo, 3, 1, count=1)[0])


def test_transform_survives_pickling() -> None:
    transform = pickle.loads(pickle.dumps(ClipTransform(SMALL)))
    assert torch.equal(transform({"image": [PHOTO]})["pixel_values"], processed(SMALL, PHOTO))


@pytest.fixture(scope="module")
def processor() -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(TINY_CLIP)


def make_trainer(folder: Path, data: Any, names: list[str], **settings: Any) -> Trainer:
    """Plain Trainer with its own collator, on the tiny CLIP."""
    torch.manual_seed(0)
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 6, "max_steps": 3, "learning_rate": 1e-3,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
        "remove_unused_columns": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    return Trainer(
        get_peft_model(clip, ANPromptConfig(class_names=names, template=TEMPLATE)),
        TrainingArguments(**{**defaults, **settings}),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


def losses(trainer: Trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_trainer_learns_from_a_folder(
    digits: Path, tmp_path: Path, processor: CLIPProcessor, workers: int
) -> None:
    """From a folder to trained weights: load, choose classes, draw shots, transform, train, evaluate."""
    names = ["seven", "one", "nine"]
    shots = few_shot(select_classes(load_image_data(digits, "train"), names), 3, seed=0)
    data = shots.with_transform(ClipTransform(processor))
    trainer = make_trainer(tmp_path, data, names, max_steps=30, dataloader_num_workers=workers)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_accuracy"] > before["eval_accuracy"]


def test_plain_trainer_learns_from_a_stream(digits: Path, tmp_path: Path, processor: CLIPProcessor) -> None:
    """The stream's steps are those of the data set it streams."""
    names = ["seven", "one"]
    runs = []
    for streaming in (False, True):
        data = select_classes(load_image_data(digits, "train", streaming=streaming), names)
        data = ClipTransform(processor).apply(check_images(data).dataset)
        trainer = make_trainer(tmp_path, data, names, train_sampling_strategy="sequential")
        trainer.train()
        runs.append(losses(trainer))
    assert len(runs[0]) == 3
    assert runs[0] == runs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_image_met_in_training_is_named(
    tmp_path: Path, processor: CLIPProcessor, streaming: bool, workers: int
) -> None:
    folder = tmp_path / "digits"
    export(folder, 2)
    broken = folder / "train" / "seven" / "001.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    data = load_image_data(folder, "train", streaming=streaming)
    augmented = ClipTransform(processor, augment=True).apply(data)
    trainer = make_trainer(tmp_path, augmented, class_names_of(data), max_steps=8, dataloader_num_workers=workers)
    with pytest.raises(CorruptImageError, match=str(broken)):
        trainer.train()
