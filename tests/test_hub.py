"""Publishing and loading over real HTTP: huggingface_hub's own client against the stand-in of `hub_server`.

Functions without `test_` run in one client process, because huggingface_hub reads its endpoint when it is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import TestCase
from unittest.mock import patch

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, Trainer, TrainingArguments

from anprompt_cli.adapters import locate
from anprompt_peft import ANPromptConfig, Metric, TrainingFacts
from anprompt_peft.publish import CardCallback, push_folder
from anprompt_peft.publish.card import BEGIN, END, GENERATED, SUMMARY
from conftest import IMAGE_SIZE
from helpers import CLASSES, adapted, needs_add_adapter, scatter
from hub_server import HubServer, Repo

try:
    import httpx2 as httpx  # the client of huggingface_hub from 2.4 on
except ImportError:
    import httpx  # type: ignore[import-not-found, no-redef]

BASE = "alice/clip"
RUN_CODE = "import os, runpy, sys; [(os.chdir(folder), runpy.run_path('printed.py')) for folder in sys.argv[1:]]"
ADAPTER_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
NOTE = "Bought with the prize money of a cat show."

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def hub(clip_folder: Path) -> Iterator[HubServer]:
    """A Hub with two users and a base model whose card states a licence."""
    with HubServer({"alice-token": "alice", "bob-token": "bob"}) as server:
        files = {path.name: path.read_bytes() for path in clip_folder.iterdir()}
        files["README.md"] = b"---\nlicense: mit\n---\n# A small CLIP\n"
        server.create(BASE).commit("main", files, "Upload model")
        yield server
        assert server.unknown == server.storage.unknown == []
        assert server.faults == server.storage.faults == []


@pytest.fixture(scope="module")
def environment(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What tells a client where the Hub is and who asks."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_TOKEN": "alice-token",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
    }


@pytest.fixture(scope="module")
def client(environment: dict[str, str]) -> Iterator[Run]:
    """Calls a function of this module in the client process and returns or raises what it does."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with patch.dict(os.environ, environment):
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


@pytest.fixture(scope="module")
def pets(hub: HubServer, client: Run) -> Repo:
    """A published adapter."""
    client(publish_adapter, "alice/pets")
    return hub.repos["alice/pets"]


def new_adapter(seed: int = 2) -> Any:
    """A model whose adapter has left its initial values, with facts for the card."""
    torch.manual_seed(seed)
    clip = CLIPModel.from_pretrained(BASE)
    model = scatter(adapted(clip, scattered=False, tokenizer_name_or_path=None), seed=seed)
    model.describe_training(TrainingFacts(metrics=[Metric("accuracy", 0.5, "pets", seeds=[seed])]))
    return model


def images() -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def answers(model: Any) -> np.ndarray:
    """What a model says to the images."""
    return model(pixel_values=images()).logits.numpy()


def publish_adapter(repo_id: str, seed: int = 2, **settings: Any) -> np.ndarray:
    """Push a new adapter and return its answers."""
    model = new_adapter(seed)
    model.push_to_hub(repo_id, **settings)
    return answers(model)


def load(repo_id: str, **settings: Any) -> np.ndarray:
    """Load an adapter from the Hub and return its answers."""
    return answers(PeftModel.from_pretrained(CLIPModel.from_pretrained(BASE), repo_id, **settings).eval())


def files(repo: Repo, ref: str = "main") -> dict[str, bytes]:
    """A branch's files."""
    commit = repo.find(ref)
    assert commit is not None
    return commit.files


def card_of(repo: Repo, ref: str = "main") -> ModelCard:
    """The card that lies in a repository."""
    return ModelCard(files(repo, ref)["README.md"].decode())


def test_push_is_one_commit_with_our_card(hub: HubServer, client: Run) -> None:
    expected = client(publish_adapter, "alice/one", tags=["pets"], commit_message="First")
    repo = hub.repos["alice/one"]
    assert [commit.message for commit in repo.commits.values()] == ["initial commit", "First"]
    assert set(files(repo)) == {".gitattributes", *ADAPTER_FILES}
    card = card_of(repo)
    assert card.text.startswith(BEGIN)
    assert 'adapter = "alice/one"\n' in card.text
    metadata = card.data.to_dict()
    assert metadata["base_model"] == BASE
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "peft"
    assert metadata["model-index"][0]["name"] == "one"
    assert {"anprompt", "pets"} <= set(metadata["tags"])
    assert np.array_equal(client(load, "alice/one"), expected)


def load_automatically(repo_id: str, **settings: Any) -> np.ndarray:
    """Let PEFT find the base model as well."""
    return answers(AutoPeftModel.from_pretrained(repo_id, **settings).eval())


def facts(repo_id: str) -> Any:
    """What the adapter says about its training."""
    return AutoPeftModel.from_pretrained(repo_id).peft_config["default"].training_facts


def test_auto_model_finds_the_base_on_the_hub(client: Run, pets: Repo) -> None:
    assert np.array_equal(client(load_automatically, pets.name), client(load, pets.name))
    assert client(facts, pets.name)["metrics"][0]["value"] == 0.5


def test_revisions(hub: HubServer, client: Run) -> None:
    """Branch, tag and commit of one repository give the adapter that was pushed there."""
    first = client(publish_adapter, "alice/versions")
    client(tag, "alice/versions", "v1")
    second = client(publish_adapter, "alice/versions", seed=3, revision="next")
    repo = hub.repos["alice/versions"]
    assert not np.array_equal(first, second)
    assert np.array_equal(client(load, repo.name), first)
    assert np.array_equal(client(load, repo.name, revision="next"), second)
    third = client(publish_adapter, repo.name, seed=4)
    for way in (load, load_automatically):  # the base model has no such revision
        assert np.array_equal(client(way, repo.name, revision="v1"), first)
    assert np.array_equal(client(load, repo.name, revision=repo.refs["next"]), second)
    assert np.array_equal(client(load, repo.name), third)


def tag(repo_id: str, name: str) -> None:
    """Tag what is on main."""
    HfApi().create_tag(repo_id, tag=name)


def test_private_repository(hub: HubServer, client: Run) -> None:
    expected = client(publish_adapter, "alice/secret", private=True)
    assert hub.repos["alice/secret"].private
    for token in ("bob-token", False):
        assert "RepositoryNotFoundError" in client(why_not, "alice/secret", token=token)
    assert np.array_equal(client(load, "alice/secret", token="alice-token"), expected)


def why_not(repo_id: str, **settings: Any) -> str:
    """What huggingface_hub said when PEFT could not load an adapter; PEFT's own error hangs on it."""
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config\.json'") as caught:
        load(repo_id, **settings)
    return repr(caught.value.__context__)


def test_loading_errors(client: Run, pets: Repo) -> None:
    assert "RepositoryNotFoundError" in client(why_not, "alice/missing")
    assert "RevisionNotFoundError" in client(why_not, pets.name, revision="missing")
    assert "EntryNotFoundError" in client(why_not, pets.name, subfolder="missing")
    assert "401" in client(why_not, "alice/unseen", token="wrong")


def test_pushing_errors(hub: HubServer, client: Run) -> None:
    """huggingface_hub's errors reach the user as they are."""
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        client(publish_adapter, "alice/refused", token="wrong")
    assert caught.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="rights to create a model under the namespace 'bob'") as caught:
        client(publish_adapter, "bob/refused")
    assert caught.value.response.status_code == 403
    hub.create("bob/clip")
    with pytest.raises(HfHubHTTPError, match="you must use a write token of bob"):
        client(publish_adapter, "bob/clip")
    assert "alice/refused" not in hub.repos


@pytest.mark.parametrize("status", [403, 413, 500])
def test_a_refused_commit_changes_nothing(status: int, hub: HubServer, client: Run, pets: Repo) -> None:
    before = client(load, pets.name)
    hub.fail("POST", f"/{pets.name}/commit/", status=status)
    with pytest.raises(HfHubHTTPError) as caught:
        client(publish_adapter, pets.name, seed=5)
    assert caught.value.response.status_code == status
    assert np.array_equal(client(load, pets.name), before)


def test_a_push_that_breaks_off_leaves_nothing_that_looks_whole(hub: HubServer, client: Run) -> None:
    """The weights are already up when the commit breaks off; the repository has none of it. Then it works."""
    hub.fail("POST", "/alice/broken/commit/", cut=True)
    with pytest.raises(httpx.TransportError):
        client(publish_adapter, "alice/broken")
    repo = hub.repos["alice/broken"]
    assert set(files(repo)) == {".gitattributes"}
    assert "EntryNotFoundError" in client(why_not, repo.name)
    assert np.array_equal(client(publish_adapter, repo.name), client(load, repo.name))
    assert set(files(repo)) == {".gitattributes", *ADAPTER_FILES}


@pytest.mark.skipif(huggingface_hub.__version__.startswith("1."), reason="huggingface_hub 1 sends uploads once")
def test_weights_that_break_off_are_sent_again(hub: HubServer, client: Run) -> None:
    hub.storage.fail("PUT", "/", cut=True)
    expected = client(publish_adapter, "alice/retried", seed=6)
    hub.storage.fail("GET", "/", cut=True)
    assert np.array_equal(client(load, "alice/retried"), expected)
    puts = [request for request in hub.storage.requests if request.startswith("PUT")]
    assert puts[-1] == puts[-2]


def test_pull_request(hub: HubServer, client: Run, pets: Repo) -> None:
    """To one's own repository, and to one that only its owner may write to."""
    for repo in (pets, hub.create("bob/pets")):
        before = repo.refs["main"]
        client(publish_adapter, repo.name, seed=7, create_pr=True)
        assert repo.refs["main"] == before
        assert set(files(repo, "refs/pr/1")) == {".gitattributes", *ADAPTER_FILES}


def push_with_base(repo_id: str, base: str) -> list[str]:
    """Push an adapter of a base model that is not on the Hub, and return what is logged."""
    model = new_adapter()
    model.peft_config["default"].base_model_name_or_path = base
    with TestCase().assertLogs("anprompt_peft.publish.hub", "WARNING") as logs:
        model.push_to_hub(repo_id)
    return [record.getMessage() for record in logs.records]


def test_warns_of_what_the_card_lacks(hub: HubServer, client: Run, clip_folder: Path) -> None:
    """A base model that cannot be asked for its licence, and one that is no more than a local folder."""
    gone = client(push_with_base, "alice/gone", "alice/no-such-clip")
    assert "licence of the base model alice/no-such-clip is not known: 404" in gone[0]
    assert "states no licence" in gone[1]
    local = client(push_with_base, "alice/local", str(clip_folder))
    assert "states no licence" in local[0]
    assert "names no base model" in local[1]
    for name, base in (("alice/gone", "alice/no-such-clip"), ("alice/local", None)):
        data = card_of(hub.repos[name]).data.to_dict()
        assert "license" not in data
        assert data.get("base_model") == base


def push(*arguments: Any) -> None:
    """`push_folder`, whose answer cannot be sent between processes by huggingface_hub 1.5."""
    push_folder(*arguments)


def push_local(folder: Path, repo_id: str, base: str) -> tuple[np.ndarray, list[str]]:
    """Push a folder whose files name a base model and a tokenizer on this machine; return answers and warnings."""
    model = new_adapter()
    config = model.peft_config["default"]
    config.base_model_name_or_path = config.tokenizer_name_or_path = base
    model.add_adapter("second", ANPromptConfig(class_names=CLASSES[:2], text_layers=1, vision_layers=1))
    model.peft_config["second"].base_model_name_or_path = base
    model.save_pretrained(folder)
    CLIPProcessor.from_pretrained(BASE).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": base, "tokenizer_class": "CLIPTokenizer"})
    )
    with TestCase().assertLogs("anprompt_peft.publish.hub", "WARNING") as logs:
        push_folder(folder, repo_id)
    return answers(model), [record.getMessage() for record in logs.records]


@pytest.mark.parametrize("base", ["/home/alice/clip", r"C:\Users\alice", "./alice"])
def test_names_that_only_this_machine_knows_are_not_pushed(
    base: str, hub: HubServer, client: Run, tmp_path: Path
) -> None:
    """They are null in the upload, which is told, and stay in the folder."""
    repo_id = f"alice/own-{len(hub.repos)}"
    expected, logs = client(push_local, tmp_path, repo_id, base)
    pushed = files(hub.repos[repo_id])
    for name in ("adapter_config.json", "second/adapter_config.json", "tokenizer_config.json"):
        assert base in json.loads((tmp_path / name).read_text()).values()
        assert base not in json.loads(pushed[name]).values()
    config = json.loads(pushed["adapter_config.json"])
    assert config["base_model_name_or_path"] is config["tokenizer_name_or_path"] is None
    assert config["class_names"] == CLASSES
    alike = [re.search(r"(\S+) is pushed without (\w+)=", line) for line in logs]
    assert [found.groups() for found in alike if found] == [
        ("adapter_config.json", "base_model_name_or_path"),
        ("adapter_config.json", "tokenizer_name_or_path"),
        ("adapter_config.json", "base_model_name_or_path"),
        ("tokenizer_config.json", "name_or_path"),
    ]
    assert repr(base) in logs[-1]
    with pytest.raises(ValueError, match=r"names no base model\. Load the CLIP that it was trained with"):
        client(load_automatically, repo_id)
    model = client(load, repo_id)
    assert np.array_equal(model, expected)


def push_two(repo_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Push a model with two adapters and return both answers."""
    model = new_adapter()
    first = answers(model)
    model.add_adapter("second", ANPromptConfig(class_names=CLASSES[:2], text_layers=1, vision_layers=1))
    model.set_adapter("second")
    model.push_to_hub(repo_id)
    return first, answers(model)


def test_two_adapters(hub: HubServer, client: Run) -> None:
    first, second = client(push_two, "alice/two")
    repo = hub.repos["alice/two"]
    assert len(repo.commits) == 2
    assert "Classes (3)" in card_of(repo).text
    assert np.array_equal(client(load, repo.name), first)
    for way in (load, load_automatically):  # the base model has no such sub-folder
        assert np.array_equal(client(way, repo.name, subfolder="second"), second)


def push_named(repo_id: str) -> None:
    """Push a model whose one adapter is not called default."""
    clip = CLIPModel.from_pretrained(BASE)
    adapted(clip, adapter_name="flowers", tokenizer_name_or_path=None).push_to_hub(repo_id)


def find(repo_id: str) -> str:
    """What the command line says about a repository without an adapter at its top."""
    with pytest.raises(ValueError, match="holds no adapter") as caught:
        locate(repo_id)
    return str(caught.value)


def test_an_adapter_in_a_sub_folder_is_named(client: Run) -> None:
    client(push_named, "alice/named")
    said = client(find, "alice/named")
    assert "hold adapters: flowers. Download it with `hf download alice/named --local-dir FOLDER`, and give" in said


def test_text_written_on_the_hub_is_kept(hub: HubServer, client: Run) -> None:
    client(publish_adapter, "alice/edited")
    repo = hub.repos["alice/edited"]
    edit(repo, NOTE, "language: en\n")
    for _ in range(2):
        client(publish_adapter, repo.name, seed=8)
        card = card_of(repo)
        assert card.text.startswith(f"Above.\n\n{BEGIN}")
        assert card.text.endswith(f"{END}\n\n{NOTE}\n")
        assert card.data.to_dict()["language"] == "en"
        assert len(GENERATED.findall(card.text)) == 1


def edit(repo: Repo, text: str, metadata: str = "") -> None:
    """Let the author add to the card in the Hub's editor."""
    content = files(repo)["README.md"].decode()
    content = content.replace("---\n", f"---\n{metadata}", 1).replace(BEGIN, f"Above.\n\n{BEGIN}")
    content = f"{content}\n{text}\n"
    repo.commit("main", {**files(repo), "README.md": content.encode()}, "Update README.md")


def test_text_written_during_a_push_is_not_lost(hub: HubServer, client: Run) -> None:
    client(publish_adapter, "alice/busy")
    repo = hub.repos["alice/busy"]
    hub.fail("POST", "/alice/busy/commit/", action=lambda: edit(repo, NOTE))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        client(publish_adapter, repo.name, seed=9)
    assert NOTE in card_of(repo).text


def push_native(repo_id: str) -> np.ndarray:
    """Push with transformers' own adapter methods, no `PeftModel` around."""
    model = CLIPModel.from_pretrained(BASE)
    model.add_adapter(ANPromptConfig(class_names=CLASSES, text_layers=2, vision_layers=2))
    scatter(model.eval()).push_to_hub(repo_id)
    return answers(model)


@needs_add_adapter
def test_native_model_keeps_the_card(hub: HubServer, client: Run) -> None:
    expected = client(push_native, "alice/native")
    repo = hub.repos["alice/native"]
    assert len(repo.commits) == 2
    assert set(files(repo)) == {".gitattributes", *ADAPTER_FILES}
    assert 'adapter = "alice/native"\n' in card_of(repo).text
    assert np.array_equal(client(load, repo.name), expected)


def push_lora(repo_id: str, stock: bool) -> None:
    """Push another method's adapter, with PEFT's own method or with what stands in its place."""
    model = get_peft_model(CLIPModel.from_pretrained(BASE), LoraConfig(target_modules=["q_proj"]))
    push = PeftModel.push_to_hub
    (push.__wrapped__ if stock else push)(model, repo_id, tags=["a"], commit_message="LoRA")


def test_other_methods_are_pushed_as_before(hub: HubServer, client: Run) -> None:
    for repo_id, stock in (("alice/lora", False), ("alice/stock", True)):
        client(push_lora, repo_id, stock)
    ours, stock_repo = hub.repos["alice/lora"], hub.repos["alice/stock"]
    assert set(files(ours)) == set(files(stock_repo))
    assert files(ours)["README.md"] == files(stock_repo)["README.md"]
    messages = [[commit.message for commit in repo.commits.values()] for repo in (ours, stock_repo)]
    assert messages[0] == messages[1]


def train(folder: Path, repo_id: str, strategy: str, callback: bool, base: str = BASE) -> None:
    """Train two epochs with pushes during training, then push, edit the local card and push again."""
    pixels = torch.randn(6, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    data = Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": [0, 1, 2] * 2}).with_format("torch")
    pushes: Any = {"push_to_hub": True, "hub_model_id": repo_id, "hub_strategy": strategy, "hub_always_push": True}
    quiet: Any = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 6}
    arguments = TrainingArguments(str(folder), num_train_epochs=2, save_strategy="epoch", **pushes, **quiet)
    model: Any = new_adapter()
    model.peft_config["default"].base_model_name_or_path = base
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[CardCallback()] if callback else None)
    trainer.train()
    trainer.push_to_hub()
    card = folder / "README.md"
    card.write_text(card.read_text() + f"\n{NOTE}\n")
    trainer.push_to_hub(commit_message="Again")


def test_trainer_keeps_the_card_in_every_push(hub: HubServer, client: Run, tmp_path: Path) -> None:
    client(train, tmp_path / "out", "trained", "every_save", callback=True)
    repo = hub.repos["alice/trained"]
    pushes = [commit for commit in repo.commits.values() if "adapter_config.json" in commit.files]
    messages = [commit.message for commit in pushes]
    assert messages[0].startswith("Training in progress, epoch")
    assert messages[-2:] == ["End of training", "Again"]
    for commit in pushes:
        text = commit.files["README.md"].decode()
        assert len(GENERATED.findall(text)) == 1
        assert 'adapter = "alice/trained"\n' in text
    card = card_of(repo)
    assert len(SUMMARY.findall(card.text)) == 1
    assert card.text.index(BEGIN) < card.text.index("Training hyperparameters")
    assert card.text.count(NOTE) == 1
    assert card.data.to_dict()["library_name"] == "peft"
    assert card.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert np.array_equal(client(load, repo.name), client(load, str(tmp_path / "out")))


def test_plain_trainer_keeps_the_card(hub: HubServer, client: Run, tmp_path: Path) -> None:
    """Without our callback the card comes with the last push and with the checkpoints."""
    client(train, tmp_path / "out", "alice/plain", "checkpoint", callback=False)
    repo = hub.repos["alice/plain"]
    assert files(repo)["last-checkpoint/README.md"].decode().count(BEGIN) == 1
    assert len(GENERATED.findall(card_of(repo).text)) == 1
    assert len(SUMMARY.findall(card_of(repo).text)) == 1
    assert card_of(repo).text.count(NOTE) == 1


def train_on_local(folder: Path, base: str) -> list[str]:
    """Train with pushes, save elsewhere, and return what is logged about the base model."""
    with TestCase().assertLogs("anprompt_peft.publish.hub", "WARNING") as logs:
        train(folder, "alice/unnamed", "checkpoint", callback=True, base=base)
    PeftModel.from_pretrained(CLIPModel.from_pretrained(BASE), folder)
    return [record.getMessage() for record in logs.records]


def test_trainer_pushes_no_name_that_only_this_machine_knows(hub: HubServer, client: Run, tmp_path: Path) -> None:
    logs = client(train_on_local, tmp_path / "out", "/home/alice/clip")
    assert [line.partition(",")[0] for line in logs] == ["The card names no base model"]
    commits = hub.repos["alice/unnamed"].commits.values()
    assert any("last-checkpoint/adapter_config.json" in commit.files for commit in commits)
    for commit in commits:
        assert not [name for name, content in commit.files.items() if b"/home/alice" in content]


def test_only_the_adapter_of_a_folder_is_pushed(hub: HubServer, client: Run, tmp_path: Path) -> None:
    client(train, tmp_path, "alice/source", "end", callback=False)
    assert (tmp_path / "training_args.bin").is_file()
    assert (tmp_path / "checkpoint-1" / "adapter_config.json").is_file()
    client(push, tmp_path, "alice/copy")
    assert set(files(hub.repos["alice/copy"])) == {".gitattributes", *ADAPTER_FILES}
    assert NOTE in card_of(hub.repos["alice/copy"]).text
    client(push, tmp_path / "checkpoint-1", "alice/one-checkpoint")
    assert set(files(hub.repos["alice/one-checkpoint"])) == {".gitattributes", *ADAPTER_FILES}
    with pytest.raises(FileNotFoundError, match="holds no adapter with a card"):
        client(push, tmp_path / "checkpoint-9", "alice/copy")


def save(folder: Path) -> None:
    """Save a new adapter."""
    new_adapter().save_pretrained(folder)


def push_with_processor(folder: Path, repo_id: str) -> np.ndarray:
    """Push an adapter with the processor in its folder, and return its answers."""
    model = new_adapter()
    model.save_pretrained(folder)
    CLIPProcessor.from_pretrained(BASE).save_pretrained(folder)
    (folder / "training_args.bin").touch()
    push_folder(folder, repo_id)
    return answers(model)


def load_all(repo_id: str) -> tuple[np.ndarray, bool]:
    """Load adapter, base model and processor from one repository; whether the processor is the base model's."""
    ours, base = (CLIPProcessor.from_pretrained(name) for name in (repo_id, BASE))
    same = ours.image_processor.to_dict() == base.image_processor.to_dict()
    same &= ours.tokenizer("a cat").input_ids == base.tokenizer("a cat").input_ids
    return answers(AutoPeftModel.from_pretrained(repo_id).eval()), same


def test_a_processor_beside_the_adapter_is_pushed(hub: HubServer, client: Run, tmp_path: Path) -> None:
    expected = client(push_with_processor, tmp_path, "alice/complete")
    processor = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(files(hub.repos["alice/complete"])) == {".gitattributes", *ADAPTER_FILES, *processor}
    found, same = client(load_all, "alice/complete")
    assert np.array_equal(found, expected)
    assert same


def test_card_code_runs_as_printed(
    environment: dict[str, str], hub: HubServer, client: Run, pets: Repo, tmp_path: Path
) -> None:
    """A saved adapter's code runs in its folder, a published one's anywhere; without a network once in the cache."""
    client(save, tmp_path / "saved")
    client(load, pets.name)
    client(CLIPProcessor.from_pretrained, BASE)
    (tmp_path / "elsewhere").mkdir()
    write_code((tmp_path / "saved" / "README.md").read_text(), tmp_path / "saved")
    write_code(card_of(pets).text, tmp_path / "elsewhere")
    before = len(hub.requests)
    command = [sys.executable, "-c", RUN_CODE, str(tmp_path / "saved"), str(tmp_path / "elsewhere")]
    offline = {**os.environ, **environment, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == before
    lines = re.findall(r"^\d+\.\d%  (.+)$", done.stdout, re.MULTILINE)
    assert sorted(lines[:3]) == sorted(CLASSES)
    assert done.stdout.splitlines()[:3] == done.stdout.splitlines()[3:]


def write_code(card: str, folder: Path) -> None:
    """Put the first Python block of a card into a folder, with an image."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.jpg")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert code[1].startswith("import anprompt_peft")
    (folder / "printed.py").write_text(code[1])
