"""`predict` against the model's own logits, one image after the other; its threads and its look-ahead."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from anprompt_peft.data import ClipTransform
from anprompt_peft.serve import Prediction, classify, predict
from conftest import IMAGE_SIZE
from helpers import CLASSES, adapted, make_clip, make_config, needs_add_adapter, scatter

ROOT = Path(__file__).parent.parent
UNSEEN = ["red bird", "one fish"]
COUNT = 11
PATIENCE = 20.0
"""Seconds that a thread may take for a tiny image before a test fails."""

CROP = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=CROP)

Ranking = list[tuple[str, float]]


def random_image(seed: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(COUNT):
        random_image(seed).save(folder / f"{seed:02}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def model() -> Any:
    return adapted()


@torch.no_grad()
def one_by_one(model: Any, images: list[Any], top_k: int) -> list[Ranking]:
    """What the model, in evaluation mode, says of each image alone."""
    rankings = []
    for image in images:
        upright = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.open(image))
        pixels = PROCESSOR(upright.convert("RGB"), return_tensors="pt")["pixel_values"]
        shares = model(pixel_values=pixels.to(model.device)).logits[0].softmax(dim=-1).tolist()
        ranked = sorted(zip(model.class_names, shares, strict=True), key=lambda pair: -pair[1])
        rankings.append(ranked[:top_k])
    return rankings


def assert_rankings(found: list[Prediction], expected: list[Ranking], tolerance: float = 1e-6) -> None:
    assert len(found) == len(expected)
    for prediction, ranking in zip(found, expected, strict=True):
        assert prediction.error is None
        assert [name for name, _ in prediction.ranking] == [name for name, _ in ranking]
        shares = [share for _, share in ranking]
        assert [share for _, share in prediction.ranking] == pytest.approx(shares, abs=tolerance)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("anprompt-predict")]


def endless(files: list[str], read: list[str]) -> Iterator[str]:
    """The files over and over; notes which were asked for."""
    for path in itertools.cycle(files):
        read.append(path)
        yield path


# what is predicted


@pytest.mark.parametrize("batch_size", [1, 4, COUNT, 16])
@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_equals_the_model_one_by_one_in_order(model: Any, files: list[str], batch_size: int, top_k: int) -> None:
    found = list(predict(model, files, PROCESSOR, top_k=top_k, batch_size=batch_size))
    assert_rankings(found, one_by_one(model, files, top_k))
    assert [each.path for each in found] == files
    assert len({each.ranking[0] for each in found}) == COUNT, "the images differ, so an order is seen"


KINDS = ["PeftModel", "disabled"] + [
    pytest.param(name, marks=needs_add_adapter) for name in ("native", "natively disabled")
]


@pytest.mark.parametrize("classes", [None, UNSEEN], ids=["trained", "unseen"])
@pytest.mark.parametrize("way", KINDS)
def test_every_kind_of_model(way: str, classes: list[str] | None, files: list[str]) -> None:
    model: Any = make_clip() if "native" in way else adapted()
    if "native" in way:
        model.add_adapter(make_config())
        scatter(model.eval())
    model.set_classes(classes)
    enabled = one_by_one(model, files, 3)
    if way == "natively disabled":
        model.disable_adapters()
    with model.disable_adapter() if way == "disabled" else nullcontext():
        expected = one_by_one(model, files, 3)
        found = list(predict(model, files, PROCESSOR, top_k=3, batch_size=4))
    assert_rankings(found, expected)
    assert (expected != enabled) == ("disabled" in way)
    assert {name for name, _ in found[0].ranking} == set(classes or CLASSES)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02), (torch.float16, 0.002)], ids=str
)
def test_other_precisions(dtype: torch.dtype, tolerance: float, files: list[str]) -> None:
    """Half precision rounds differently by batch size, so only the probabilities are compared."""
    model = adapted(make_clip(dtype=dtype))
    found = [dict(each.ranking) for each in predict(model, files, PROCESSOR, top_k=3, batch_size=4)]
    expected = [dict(ranking) for ranking in one_by_one(model, files, 3)]
    assert found == [pytest.approx(shares, abs=tolerance) for shares in expected]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(model: Any, files: list[str]) -> None:
    """Predictions come back in order, and the stream is read one batch ahead."""
    expected = one_by_one(model, files, 3)
    read: list[str] = []
    found = predict(model.to("cuda"), endless(files, read), PROCESSOR, top_k=3, batch_size=2)
    assert_rankings(list(itertools.islice(found, COUNT)), expected, tolerance=1e-3)
    assert len(read) == 2 * (COUNT // 2 + 1 + 1)


def test_paths_and_images_of_all_kinds_mixed(model: Any, files: list[str], tmp_path: Path) -> None:
    """Grey, palette and clear images, and one that the camera took sideways, from a path as well as opened."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = tmp_path / "sideways.jpg"
    random_image(50).save(sideways, quality=95, exif=exif)
    images: list[Any] = [files[0], Path(files[1]), random_image(2), Image.open(files[3]), random_image(51, "L")]
    images += [random_image(52, "P"), random_image(53, "RGBA"), sideways, Image.open(sideways)]
    expected = one_by_one(model, images, 2)
    images[3], images[8] = Image.open(files[3]), Image.open(sideways)  # those above have been read by now
    found = list(predict(model, images, PROCESSOR, top_k=2, batch_size=4))
    assert_rankings(found, expected)
    named = [files[0], files[1], None, files[3], None, None, None, str(sideways), str(sideways)]
    assert [each.path for each in found] == named


def test_an_image_given_many_times_is_read_by_one_thread_at_a_time(model: Any, files: list[str]) -> None:
    """Pillow decodes an opened image on first use, and two threads at once would garble it."""
    for path in files:
        opened = Image.open(path)
        found = list(predict(model, [opened] * 16, PROCESSOR, top_k=3, workers=8))
        assert_rankings(found, one_by_one(model, [path] * 16, 3))


def test_unreadable_images_do_not_stop_the_others(model: Any, files: list[str], tmp_path: Path) -> None:
    content = Path(files[0]).read_bytes()
    cut, text, missing = tmp_path / "cut.png", tmp_path / "text.jpg", tmp_path / "missing.png"
    cut.write_bytes(content[: len(content) // 2])
    text.write_text("no image")
    images: list[Any] = [files[0], cut, Image.open(cut), text, missing, tmp_path, Image.new("F", (20, 20)), files[1]]
    found = list(predict(model, images, PROCESSOR, top_k=3, batch_size=3))
    errors = [
        rf"^{re.escape(str(cut))} cannot be decoded: .*truncated",
        rf"^{re.escape(str(cut))} cannot be decoded: .*truncated",
        rf"^{re.escape(str(text))} cannot be decoded: no known image format$",
        rf"No such file or directory: '{re.escape(str(missing))}'$",
        rf"Is a directory: '{re.escape(str(tmp_path))}'$",
        r"^an image without a path cannot be decoded: pixels of mode 'F' have no known range",
    ]
    assert [each.path for each in found] == [files[0], *map(str, [cut, cut, text, missing, tmp_path]), None, files[1]]
    assert_rankings([found[0], found[-1]], one_by_one(model, [files[0], files[1]], 3))
    for each, error in zip(found[1:-1], errors, strict=True):
        assert each.ranking == []
        assert re.search(error, str(each.error))


@pytest.mark.parametrize("where", ["open_image", "ClipTransform.__call__", "upright"])
def test_too_little_memory_for_one_image_does_not_stop_the_others(
    where: str, model: Any, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[Any] = [Image.open(files[0]), files[1], files[2]]
    expected = one_by_one(model, files[:3], 3)
    calls, owner = itertools.count(), classify
    *owners, name = where.split(".")
    for each in owners:
        owner = getattr(owner, each)
    function = getattr(owner, name)

    def fail_once(*args: Any) -> Any:
        if next(calls) == 0:
            raise MemoryError
        return function(*args)

    monkeypatch.setattr(owner, name, fail_once)
    found = list(predict(model, images, PROCESSOR, top_k=3, workers=1))
    at = 1 if where == "open_image" else 0
    failed = found.pop(at)
    assert failed == Prediction(files[at], error=f"{files[at]}: too little memory to decode it")
    expected.pop(at)
    assert_rankings(found, expected)


def test_batches_without_a_readable_image_are_not_computed(model: Any, files: list[str], tmp_path: Path) -> None:
    sizes: list[int] = []
    model.get_base_model().vision_model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    missing = [tmp_path / "a.png", tmp_path / "b.png"]
    found = list(predict(model, [*missing, files[0], missing[0], *files[1:3]], PROCESSOR, batch_size=2))
    assert [each.error is None for each in found] == [False, False, True, False, True, True]
    assert sizes == [1, 2]
    assert list(predict(model, [], PROCESSOR)) == []


# threads


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Count the images that have been made pixels."""
    made, transform = threading.Semaphore(0), ClipTransform.__call__

    def spy(self: ClipTransform, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = transform(self, batch)
        made.release()
        return pixels

    monkeypatch.setattr(ClipTransform, "__call__", spy)
    return made


@pytest.mark.parametrize("workers", [1, 3, None])
def test_the_next_batch_is_decoded_while_the_model_computes(
    workers: int | None, model: Any, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each forward pass waits until the batch after it has been decoded, which no serial loop would ever do."""
    made, taken = watch_decoding(monkeypatch), 0

    def wait_for_the_next_batch(*_: Any) -> None:
        nonlocal taken
        target = min(COUNT, 8 if taken == 0 else taken + 4)
        while taken < target:
            assert made.acquire(timeout=PATIENCE), "the next batch is not decoded while the model computes"
            taken += 1

    model.register_forward_pre_hook(wait_for_the_next_batch)
    found = list(predict(model, files, PROCESSOR, batch_size=4, workers=workers))
    assert [each.path for each in found] == files
    assert taken == COUNT


def test_streams_are_read_one_batch_ahead(model: Any, files: list[str]) -> None:
    read: list[str] = []
    found = predict(model, endless(files, read), PROCESSOR, batch_size=3)
    assert read == []
    for number in range(20):
        assert next(found).path == files[number % COUNT]
        assert len(read) == 3 * (number // 3 + 2)


@pytest.mark.parametrize("drop", [list, next, lambda found: found.close()], ids=["end", "deletion", "close"])
def test_no_thread_is_left(drop: Callable[[Any], None], model: Any, files: list[str]) -> None:
    found = predict(model, files, PROCESSOR, batch_size=2, workers=2)
    assert own_threads() == [], "nothing starts before the first prediction is asked for"
    first = next(found)
    assert first.path == files[0]
    assert own_threads() != []
    drop(found)
    del found
    assert own_threads() == []


def test_images_that_nobody_waits_for_are_not_decoded(
    model: Any, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread, which is held up in the second batch, the rest of that batch is called off."""
    at_work, go_on, started, transform = threading.Event(), threading.Event(), 0, ClipTransform.__call__

    def hold_up(self: ClipTransform, batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal started
        started += 1
        if started == 5:
            at_work.set()
            assert go_on.wait(PATIENCE)
        return transform(self, batch)

    monkeypatch.setattr(ClipTransform, "__call__", hold_up)
    found: Any = predict(model, files, PROCESSOR, batch_size=4, workers=1)
    next(found)
    assert at_work.wait(PATIENCE)
    releasing = threading.Timer(0.2, go_on.set)
    releasing.start()
    found.close()
    releasing.join()
    assert started == 5
    assert own_threads() == []


def test_an_error_of_the_model_comes_through(model: Any, files: list[str]) -> None:
    passes = 0

    def fail(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            raise RuntimeError("out of memory")

    model.train()
    model.get_base_model().vision_model.register_forward_pre_hook(fail)
    found = predict(model, itertools.cycle(files), PROCESSOR, batch_size=3)
    assert [next(found).path for _ in range(3)] == files[:3]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(found)
    assert own_threads() == []
    assert all(module.training for module in model.modules())
    assert list(found) == []


def test_an_error_of_the_images_comes_through(model: Any, files: list[str]) -> None:
    def broken() -> Iterator[str]:
        yield from files[:5]
        raise ConnectionError("the camera is gone")

    found = predict(model, broken(), PROCESSOR, batch_size=2)
    with pytest.raises(ConnectionError, match="the camera is gone"):
        list(found)
    assert own_threads() == []


# the model's state


def modes(model: Any) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
def test_the_mode_stays_and_predictions_are_in_evaluation_mode(mode: str, model: Any, files: list[str]) -> None:
    """In training mode these unseen classes would be ranked by other logits."""
    model.set_classes(UNSEEN)
    expected = one_by_one(model, files, 2)
    with torch.no_grad():
        pixels = ClipTransform(PROCESSOR)({"image": [Image.open(files[0])]})["pixel_values"]
        other = float(model.train()(pixel_values=pixels).logits.softmax(dim=-1).max())
    assert other != pytest.approx(expected[0][0][1], abs=1e-3)
    model.train(mode == "training")
    if mode == "mixed":
        model.get_base_model().vision_model.train()
    before, found, graphs = modes(model), [], []
    model.register_forward_hook(lambda _, __, output: graphs.append(output.logits.requires_grad))
    for each in predict(model, files, PROCESSOR, top_k=2, batch_size=4):
        assert modes(model) == before
        assert torch.is_grad_enabled()
        found.append(each)
    assert_rankings(found, expected)
    assert modes(model) == before
    assert graphs == [False, False, False]


def test_training_between_two_predictions(model: Any, files: list[str], pixels: Tensor) -> None:
    """Whoever stops early, or trains in the loop, finds a model that trains."""
    found = predict(model.train(), itertools.cycle(files), PROCESSOR, batch_size=1)
    next(found)
    model(pixel_values=pixels, labels=torch.tensor([0, 2, 1])).loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    later = next(found)
    model.eval()
    assert_rankings([later], one_by_one(model, [files[1]], 1))


def test_the_classes_are_those_of_the_call(model: Any, files: list[str]) -> None:
    """Also of two iterators that take turns; the model keeps the classes it was given last."""
    trained = one_by_one(model, files, 2)
    first = predict(model, files, PROCESSOR, top_k=2, batch_size=2)
    model.set_classes(UNSEEN)
    unseen = one_by_one(model, files, 2)
    second = predict(model, files, PROCESSOR, top_k=2, batch_size=3)
    model.set_classes(CLASSES[:2])
    both = list(zip(first, second, strict=True))
    assert model.class_names == CLASSES[:2]
    assert_rankings([each for each, _ in both], trained)
    assert_rankings([each for _, each in both], unseen)


def test_another_adapter_in_the_middle_changes_nothing(model: Any, files: list[str]) -> None:
    expected = one_by_one(model, files, 1)
    with model.disable_adapter():
        zero_shot = predict(model, files, PROCESSOR)
        plain = one_by_one(model, files, 1)
    assert_rankings(list(zero_shot), plain)
    stream = predict(model, files, PROCESSOR, batch_size=1)
    found = [next(stream)]
    model.add_adapter("two", make_config())
    found.append(next(stream))
    model.set_adapter("two")
    found += stream
    assert_rankings(found, expected)
    stream = predict(model, files, PROCESSOR, batch_size=1)
    next(stream)
    model.delete_adapter("two")
    with pytest.raises(RuntimeError, match=r"The adapter 'two' was deleted after predict was called\."):
        next(stream)
    assert own_threads() == []


# wrong input


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": 2.0}, ValueError, r"batch_size=2\.0 must be"),
        ({"top_k": True}, ValueError, "top_k=True must be"),
        ({"top_k": -1}, ValueError, "top_k=-1 must be"),
        ({"workers": 0}, ValueError, "workers=0 must be"),
        ({"images": "photo.jpg"}, TypeError, "images='photo.jpg' must be a list or another iterable"),
        ({"images": Path("photo.jpg")}, TypeError, "must be a list or another iterable of paths and PIL images"),
        ({"images": Image.new("RGB", (4, 4))}, TypeError, "must be a list or another iterable"),
        ({"images": ["a.png", None]}, TypeError, "given as a path or a PIL image, not as None"),
        ({"images": (b"a.png",)}, TypeError, "not as b'a.png'"),
        ({"images": [np.zeros((4, 4, 3))]}, TypeError, "not as array"),
        ({"processor": CLIPImageProcessorPil(do_resize=False)}, ValueError, "needed are both steps"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(
    wrong: dict[str, Any], error: type[Exception], message: str, model: Any, files: list[str]
) -> None:
    arguments: dict[str, Any] = {"images": files, "processor": PROCESSOR, **wrong}
    with pytest.raises(error, match=message):
        predict(model, arguments.pop("images"), arguments.pop("processor"), **arguments)


def test_what_is_no_image_in_a_stream_is_refused_when_it_is_read(model: Any, files: list[str]) -> None:
    stream: Any = iter([*files[:3], {"bytes": b""}])
    found = predict(model, stream, PROCESSOR, batch_size=1)
    assert [next(found).path for _ in range(2)] == files[:2]
    with pytest.raises(TypeError, match=r"not as \{'bytes': b''\}"):
        next(found)
    assert own_threads() == []


def test_models_that_cannot_predict_are_refused(clip: CLIPModel, files: list[str]) -> None:
    with pytest.raises(TypeError, match="with an ANPrompt adapter, not CLIPModel"):
        predict(clip, files, PROCESSOR)
    model = get_peft_model(clip, make_config(init_noise_prompts=False))
    with pytest.raises(ValueError, match="were neither computed nor loaded"):
        predict(model, files, PROCESSOR)


# the page


def test_the_page_runs_as_printed(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    section = page.partition("## Many images\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    base = CLIPModel.from_pretrained(clip_folder)
    scatter(get_peft_model(base, make_config(tokenizer_name_or_path=None))).save_pretrained(tmp_path / "my-adapter")
    CLIPProcessor.from_pretrained(clip_folder).save_pretrained(tmp_path / "my-adapter")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    random_image(1).save(tmp_path / "photos" / "more" / "a.jpg")
    (tmp_path / "photos" / "b.jpg").write_text("no image")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "serving.md", "exec"), {})
    shown = sorted(capsys.readouterr().out.splitlines())
    assert shown[0] == "photos/b.jpg cannot be decoded: no known image format"
    assert re.fullmatch(r"photos/more/a\.jpg: (cat|dog|small fish) \d+\.\d%", shown[1])
