"""What goes wrong: losses that are not finite, odd files and odd text, and threads that interfere."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Barrier, Event, Lock, Thread
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from markdown_it import MarkdownIt
from peft import PeftModel
from PIL import EpsImagePlugin, Image
from torch import Tensor
from transformers import CLIPProcessor

import distributed_worker as worker
from anprompt_cli import main, text
from anprompt_cli.jobs import models
from anprompt_cli.streams import escaped_output
from anprompt_cli.text import aligned, as_json
from anprompt_peft import Metric, TrainingFacts
from anprompt_peft.data import ClipTransform, CorruptImageError, RGBImage, check_images, images
from anprompt_peft.data.images import FORMATS, MAX_PIXELS, open_image
from anprompt_peft.evaluation.grid.tables import Table
from anprompt_peft.fast import Savings
from anprompt_peft.files import to_json
from anprompt_peft.serve import Prediction, predict
from anprompt_peft.text import printable
from anprompt_peft.training import NonFiniteError, SeededDataset
from helpers import (
    CLASSES,
    WEIGHTS,
    adapted,
    assert_same,
    copies,
    logits,
    make_clip,
    make_config,
    make_trainer,
    needs_add_adapter,
    scatter,
    train_by_command,
)

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

# losses, weights and logits that are not finite


def test_the_first_loss_that_is_not_finite_ends_the_training(digits: Path, clip_folder: Path, tmp_path: Path) -> None:
    """The message names step and images, the weights are those of the step before, and so is the checkpoint."""
    shots = load_dataset("imagefolder", data_dir=str(digits), split="train").select(range(8))
    shots = shots.map(lambda row: {"label": row["label"] % 3})
    transform = ClipTransform(CLIPProcessor.from_pretrained(clip_folder))
    trainer = make_trainer(tmp_path, transform.apply(shots), save_strategy="steps", save_steps=1)
    compute_loss, seen = trainer.compute_loss, []

    def fail(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(model, inputs, *args, **kwargs)
        seen.append(copies(model))
        return loss * math.nan if len(seen) == 4 else loss

    trainer.compute_loss = fail
    with pytest.raises(NonFiniteError, match=r"The loss is nan at step 4, epoch 1\.5") as caught:
        trainer.train()
    named = [path.name for path in digits.rglob("*.png") if str(path) in str(caught.value)]
    assert len(named) == 4
    assert {name for name in tmp_path.iterdir() if name.is_dir()} == {tmp_path / f"checkpoint-{n}" for n in (1, 2, 3)}
    assert_same(copies(trainer.model), seen[-1])


def test_images_without_files_are_named_by_row(data: Dataset, tmp_path: Path) -> None:
    rows = [dict(row) for row in data]
    rows[7]["pixel_values"] = torch.full_like(rows[7]["pixel_values"], math.inf)
    trainer = make_trainer(tmp_path, rows, save_strategy="no")
    with pytest.raises(NonFiniteError, match=r"Images of the batch: (row \d+, ){3}row \d+\.") as caught:
        trainer.train()
    assert "row 7" in str(caught.value)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A second adapter that is whole is."""
    model = adapted()
    model.add_adapter("broken", make_config())
    next(weight for name, weight in model.named_parameters() if ".broken" in name).data.view(-1)[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"The adapter 'broken' holds NaN or infinity in 1 tensors \(.*\.broken"):
        model.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    PeftModel.from_pretrained(make_clip(), tmp_path / "one")


@needs_add_adapter
def test_transformers_saves_no_weights_that_are_not_finite_either(tmp_path: Path) -> None:
    clip = make_clip()
    clip.add_adapter(make_config())
    next(weight for name, weight in clip.named_parameters() if "anprompt_tokens" in name).data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="'default'"):
        clip.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_last_step_that_spoils_the_weights_is_noticed(data: Dataset, tmp_path: Path) -> None:
    settings: Any = {"max_steps": 1, "learning_rate": math.inf, "warmup_epochs": 0, "save_steps": 1}
    for strategy in ("no", "steps"):
        trainer = make_trainer(tmp_path / strategy, data, save_strategy=strategy, **settings)
        with pytest.raises(NonFiniteError, match="The adapter 'default' holds NaN or infinity"):
            trainer.train()
        assert not list(tmp_path.rglob("*.safetensors"))


def test_predictions_that_are_not_finite_are_errors(clip_folder: Path, digits: Path, tmp_path: Path) -> None:
    model, processor = adapted(), CLIPProcessor.from_pretrained(clip_folder)
    path = next(digits.rglob("*.png"))
    next(weight for name, weight in model.named_parameters() if "anprompt_tokens" in name).data.fill_(math.nan)
    (found,) = predict(model, [str(path)], processor)
    assert found.ranking == []
    assert found.error == f"{path}: its logits are NaN or infinite, as the adapter's weights may be."
    assert list(model.class_names) == CLASSES


def test_the_command_line_stops_at_such_a_loss(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--learning-rate", 1e30, "--warmup-epochs", 0, "--epochs", 3)
    assert train_by_command(digits, tmp_path / "out", *settings) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The loss is nan at step 2, epoch 0.5. Images of the batch: /"), error
    assert error.count(".png") == 5
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_the_command_line_gives_no_figures_of_broken_weights(
    trained: Path, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from a file, which is refused, nor from weights that broke after loading."""
    image = str(next((digits / "test").rglob("*.png")))
    load = models.PeftModel.from_pretrained

    def spoil(*arguments: Any, **settings: Any) -> Any:
        model = load(*arguments, **settings)
        next(weight for name, weight in model.named_parameters() if "anprompt_tokens" in name).data.fill_(math.nan)
        return model

    monkeypatch.setattr(models.PeftModel, "from_pretrained", spoil)
    for command in (["predict", str(trained), image], ["evaluate", str(trained), str(digits)]):
        assert main(command) == 1
        answer = capsys.readouterr()
        assert answer.out == ""
        assert "NaN or infinit" in answer.err.splitlines()[-1]


def test_the_accelerate_example_stops_at_such_a_loss(digits: Path, tmp_path: Path) -> None:
    settings = ("--learning-rate", "1e30", "--warmup-epochs", "0", "--save-every", "1")
    with pytest.raises(NonFiniteError, match=r"The loss is nan at step 2, batch 4 of epoch 1\."):
        worker.run_script(digits, tmp_path, *settings)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


# images


def jpeg(path: Path, width: int, height: int) -> Path:
    Image.new("RGB", (width, height), (200, 30, 90)).save(path)
    return path


def test_a_picture_that_is_none_never_reaches_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file's name says."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for value in ({"path": str(path), "bytes": None}, {"path": str(path), "bytes": path.read_bytes()}):
        with pytest.raises(CorruptImageError, match=r"picture\.png cannot be decoded: no known image format"):
            RGBImage().decode_example(value)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_meant_are_read(kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 90)).save(buffer, kind)
    image = open_image(io.BytesIO(buffer.getvalue()))
    assert (image.size, image.mode) == ((8, 6), "RGB")
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 90)).max() < 8


def test_large_jpegs_are_decoded_small_and_other_large_images_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Image.MAX_IMAGE_PIXELS or 0) / 2 > MAX_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", 80_000)
    for name in ("just.jpg", "just.png"):
        assert open_image(jpeg(tmp_path / name, 400, 200)).size == (400, 200)
    large = open_image(jpeg(tmp_path / "large.jpg", 808, 400))
    assert large.size == (101, 50)
    assert np.abs(np.asarray(large).astype(int) - (200, 30, 90)).max() < 8
    for name, size in (("large.png", (401, 200)), ("huge.jpg", (8000, 800))):
        path = jpeg(tmp_path / name, *size)
        message = f"{name} cannot be decoded: it has {size[0]} x {size[1]} pixels, more than 80,000"
        with pytest.raises(CorruptImageError, match=message):
            RGBImage().decode_example({"path": str(path), "bytes": None})


def test_pipes_devices_and_addresses_are_no_images_and_names_need_no_utf8(
    trained: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command goes on to the end, and prints what it reads as UTF-8."""
    whole = next((digits / "test").rglob("*.png")).read_bytes()
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/c\xff.png")
    Path(odd).write_bytes(whole)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xfe.png")).write_text("no image")
    for options in ([], ["--jsonl"]):
        assert main(["predict", str(trained), str(tmp_path), *options]) == 1
        answer = capfd.readouterr()
        (line,) = answer.out.splitlines()
        if options:
            assert json.loads(line)["image"] == odd
        else:
            assert line.startswith(f"{tmp_path}/c\\udcff.png  ")
        errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert [error.removeprefix(f"error: {tmp_path}/") for error in errors] == [
            "a.png cannot be decoded: it is not a regular file",
            "b.png cannot be decoded: it is not a regular file",
            "d\\udcfe.png cannot be decoded: no known image format",
        ]
    with pytest.raises(FileNotFoundError):
        open_image("https://127.0.0.1/picture.png")


# output is data

HOSTILE = "\x1b[2Jred\x9b31m \u202ereversed\u2066 \x07\x7f tab\there\udcff \u540d\u524d \u0646\u200c\u0645"
ESCAPED = (
    r"\x1b[2Jred\u009b31m \u202ereversed\u2066 \x07\u007f tab" "\t" r"here\udcff" " \u540d\u524d \u0646\u200c\u0645"
)


HOSTILE_COMMAND = """
import json, logging, sys, warnings
from pathlib import Path
from tqdm import tqdm
import anprompt_cli
from anprompt_cli import main

def describe(folder):
    print({text!r} + "\\r" + {text!r} + "\\n")
    logging.getLogger("anprompt_peft").warning("%s", {text!r})
    warnings.warn({text!r})
    for _ in tqdm(range(2), desc={text!r}):
        tqdm.write({text!r}, file=sys.stderr)
    print(json.dumps({{"name": {text!r}}}, ensure_ascii=False))
    raise ValueError({text!r})

module = sys.modules["anprompt_cli.info"]  # the name in the package is the command
module.describe, module.locate = describe, lambda *_: Path("any")
sys.exit(main(["--debug", "info", "any"]))
"""


def test_terminals_obey_nothing_that_is_printed_logged_or_warned_of() -> None:
    """Whatever command prints it, and in errors; lines, tabs, other scripts and progress bars stay."""
    script = HOSTILE_COMMAND.format(text=HOSTILE)
    done = subprocess.run(
        [sys.executable, "-c", script.encode("ascii", "backslashreplace").decode()],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 2
    for char in set(out + err) - set("\n\t\r\u200c"):
        assert char.isprintable(), repr(char)
    first, empty, record = out.split("\n")[:3]
    assert (first, empty) == (f"{ESCAPED}\\r{ESCAPED}", "")
    assert json.loads(record) == {"name": HOSTILE}
    assert err.count(ESCAPED) >= 6  # log, warning, bar, two lines beside it, traceback
    assert err.splitlines()[-1].startswith("error: " + ESCAPED[:30])


def test_bars_and_terminals_that_lack_letters() -> None:
    """What a bar writes to go back and up passes; a letter that the encoding lacks is escaped, and no error."""
    raw = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(raw, encoding="ascii")) as stream, escaped_output():
        for text in ("\n\x1b[A", "\rbar \x1b[A\r", "name \u540d\n"):
            sys.stdout.write(text)
        assert sys.stdout.encoding == "ascii"
        assert not sys.stdout.isatty()
        stream.flush()
    assert raw.getvalue() == b"\n\x1b[A\rbar \\x1b[A\rname \\u540d\n"


FORGED = "cat\nWARNING: all images are sound\r\u2028\x1b[2J\u202e.png"


def test_the_name_of_a_file_forges_no_line_of_a_log(
    trained: Path,
    digits: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of an image that cannot be read, and of one whose loss is not finite, in Python and on the command line."""
    path = tmp_path / "one" / FORGED
    path.parent.mkdir()
    path.write_text("no image")
    shutil.copy(next((digits / "test").rglob("*.png")), path.parent / "sound.png")
    found = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", drop_labels=True)
    found = found.cast_column("image", RGBImage())
    with caplog.at_level("WARNING", logger="anprompt_peft"):
        (line,) = check_images(found, "skip").corrupt
    (record,) = caplog.records
    assert record.getMessage() == f"left out: {line}"
    assert line.endswith(
        r"cat\nWARNING: all images are sound\r\u2028\x1b[2J\u202e.png cannot be decoded: no known image format"
    )
    (name,) = SeededDataset(Dataset.from_dict({"image": [str(path)]}).cast_column("image", RGBImage()), 0).names([0])
    assert name.isprintable()
    assert main(["predict", str(trained), str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert len([line for line in errors.splitlines() if "sound" in line]) == 1
    assert "\nWARNING" not in errors


def test_names_in_tables_and_both_ways_to_escape_them() -> None:
    assert len(aligned([("class", "images"), (FORGED, "1")]).splitlines()) == 2
    for char in map(chr, (*range(0x3000), 0xD800, 0xDCFF, 0xFEFF, 0xFFF9, 0xE0001)):
        if char not in "\r\n":
            assert (printable(char) == char) == (text.printable(char) == char), repr(char)


def test_json_has_no_numbers_and_letters_that_json_lacks() -> None:
    """They would make a file that others cannot read, or none at all at the end of a run."""
    record = {"a": [math.nan, -math.inf, 1.5], "name": "caf\xe9 c\udcff.png"}
    for written in (to_json(record), as_json(record).encode("utf-8", "backslashreplace").decode()):
        read = json.loads(written.encode(), parse_constant=pytest.fail)
        assert read == {"a": [None, None, 1.5], "name": record["name"]}
        assert "caf\xe9" in written


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_terminal_that_is_gone_ends_no_training(digits: Path, tmp_path: Path) -> None:
    with redirect_stdout(Gone()), redirect_stderr(Gone()):
        assert train_by_command(digits, tmp_path / "out") == 141
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("command", "redirection", "expected"),
    [
        ("info ADAPTER", "| true", 141),
        ("--help", "| true", 141),
        ("info ADAPTER", ">&-", 0),
        ("info ADAPTER", "<&- >&- 2>&-", 0),
        ("info none/such/adapter", "2>&-", 2),
        ("info none/such/adapter", "2> >(exec 2>&-)", 2),
        ("info ADAPTER", "> /dev/full", 1),
    ],
)
def test_closed_streams_say_nothing(command: str, redirection: str, expected: int, trained: Path) -> None:
    """A reader that is gone gives the exit code of SIGPIPE; a full disk is an error."""
    program = "import sys; from anprompt_cli import main; sys.exit(main())"
    called = f"{sys.executable} -c '{program}' {command.replace('ADAPTER', str(trained))}"
    waiting = f"(sleep 0.2; {called})" if "|" in redirection else called  # until the reader is gone
    done = subprocess.run(
        ["bash", "-c", f"{waiting} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    full = "error: Standard output cannot be written: [Errno 28] No space left on device\n"
    assert done.stderr == (full if expected == 1 else "")


MARKUP = "<img src=x onerror=alert(1)> [text](javascript:alert(1)) ![x](https://host/x) `a` | b &lt;b&gt; <!-- x"


def test_nothing_in_a_card_is_markup(tmp_path: Path) -> None:
    """Whatever it holds is read as text: rendered by CommonMark, only the template's own tags and links are there."""
    model = adapted(class_names=["cat", "dog", "<b>`x"], template="a {} <i>|")
    facts = TrainingFacts(
        training_data=f"# {MARKUP}\n\n---\n{MARKUP}",
        arguments={f"a `{MARKUP}": MARKUP, "list": [MARKUP]},
        metrics=[Metric(MARKUP, 1.0, MARKUP, name=MARKUP, split=MARKUP)],
    )
    model.describe_training(facts)
    model.save_pretrained(tmp_path)
    page = markdown_of((tmp_path / "README.md").read_text())
    assert "onerror" in page
    assert set(re.findall(r"<(\w+)", page)) <= TAGS
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) == {"https://arxiv.org/abs/2508.04677"}


def test_nothing_in_the_tables_of_a_grid_is_markup() -> None:
    names = ("method", MARKUP, f"a\n\n# {MARKUP}", "# \x1b[2J\u202e")
    table = Table(MARKUP, names, (names, ("-",) * 4), notes=(MARKUP, "see\n# it"), words=4)
    written = table.markdown()
    assert all(line.isprintable() for line in written.splitlines())
    page = markdown_of(f"---\n---\n{written}")
    assert page.count("<tr>") == 3
    assert "onerror" in page
    assert set(re.findall(r"<(\w+)", page)) <= TAGS - {"a"}


TAGS = {"h1", "h2", "h3", "p", "a", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


def markdown_of(card: str) -> str:
    """A card without its metadata and comments, rendered."""
    body = card.split("---\n", 2)[2]
    return str(MarkdownIt("commonmark").enable("table").render(re.sub("<!-- anprompt_peft.*?-->", "", body)))


# threads


@pytest.fixture
def pair() -> Any:
    """A model with two adapters that differ."""
    model = adapted()
    model.add_adapter("other", make_config(text_layers=1, vision_layers=3))
    for adapter, seed in (("other", 5), ("default", 2)):
        model.set_adapter(adapter)
        scatter(model, seed=seed)
    return model.eval()


@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["decomposed", "whole"])
def test_a_choice_in_the_middle_of_a_call_is_for_the_next(
    savings: Savings, pair: Any, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread chooses adapter and classes between the texts and the images of a call."""
    pair.set_savings(savings)
    expected = logits(pair, pixels)
    embedding = pair.vision_model.embeddings

    def choose() -> None:
        pair.set_adapter("other")
        pair.set_classes(["small dog", "cat"])

    def interrupt(*_: Any) -> None:
        hook.remove()
        thread = Thread(target=choose)
        thread.start()
        thread.join()

    hook = embedding.register_forward_pre_hook(interrupt)
    assert torch.equal(logits(pair, pixels), expected)
    later = logits(pair, pixels)
    assert later.shape == (3, 2)
    fresh = pair.get_base_model()
    assert (fresh.head.adapter, fresh.class_names) == ("other", ["small dog", "cat"])
    pair.set_adapter("default")
    assert not torch.equal(logits(pair, pixels), later)


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run jobs at once, with threads that take turns as often as they can; the first error is raised."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            for job in [pool.submit(job) for job in jobs]:
                job.result()
    finally:
        sys.setswitchinterval(interval)


ROUNDS = [5, pytest.param(200, marks=pytest.mark.slow)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_every_output_is_that_of_one_adapter(rounds: int, pair: Any, pixels: Tensor) -> None:
    expected = {}
    for adapter in ("other", "default"):
        pair.set_adapter(adapter)
        expected[adapter] = logits(pair, pixels)
    found: list[Tensor] = []
    end = Event()

    def switch() -> None:
        while not end.is_set():
            for adapter in expected:
                pair.set_adapter(adapter)

    def call() -> None:
        found.extend(logits(pair, pixels) for _ in range(rounds))
        if len(found) == 2 * rounds:
            end.set()

    in_threads(switch, call, call)
    assert len(found) == 2 * rounds
    assert all(any(torch.allclose(each, one, atol=1e-5) for one in expected.values()) for each in found)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_iterators_of_several_threads_keep_their_classes(rounds: int, clip_folder: Path, digits: Path) -> None:
    """While a third thread chooses classes, none of which is lost. The model is in training mode, before and after."""
    model, processor = adapted().train(), CLIPProcessor.from_pretrained(clip_folder)
    files = sorted(map(str, digits.rglob("*.png")))[:6]
    lists = [["cat", "dog"], ["small fish", "bird", "dog"]]
    expected = []
    for names in lists:
        model.set_classes(names)
        expected.append([each.ranking for each in predict(model, files, processor, top_k=3, batch_size=2)])
    model.set_classes(None)
    wrong: list[Prediction] = []
    lost: list[int] = []
    ready = Barrier(len(lists) + 1)

    def ask(number: int) -> None:
        for _ in range(rounds):
            with lock:
                model.set_classes(lists[number])
                iterator = predict(model, files, processor, top_k=3, batch_size=2, workers=1)
            for found, ranking in zip(iterator, expected[number], strict=True):
                if [name for name, _ in found.ranking] != [name for name, _ in ranking]:
                    wrong.append(found)
        ready.wait()

    def choose() -> None:
        for number in range(rounds):
            with lock:
                model.set_classes(["bird", f"cat {number}"])
                if model.class_names != ["bird", f"cat {number}"]:
                    lost.append(number)
        ready.wait()

    lock = Lock()
    in_threads(lambda: ask(0), lambda: ask(1), choose)
    assert (wrong, lost) == ([], [])
    assert all(module.training for module in model.modules())
