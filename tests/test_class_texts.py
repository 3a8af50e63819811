"""Class texts: what is accepted, the exact tokens, where CLIP reads them."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPTokenizer

from anprompt_peft.method.class_texts import (
    check_class_names,
    check_descriptions,
    check_template,
    end_of_text_positions,
    load_tokenizer,
    tokenize,
    tokenize_classes,
    trim,
)
from conftest import CONTEXT
from helpers import make_clip
from reference import eot_positions


@pytest.fixture(scope="module")
def config() -> CLIPConfig:
    return make_clip().config


def clip_config(eos_token_id: int, **text: Any) -> CLIPConfig:
    return CLIPConfig(text_config={"eos_token_id": eos_token_id, **text})


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), ["a", "A", " a"]])
def test_good_names(names: Any) -> None:
    check_class_names(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ab", "must be a list of strings, got 'ab'"),
        (["a", 1], r"must be a list of strings, got \['a', 1\]"),
        (["a"], r"at least two classes, got \['a'\]"),
        ([], r"at least two classes, got \[\]"),
        (["", "b", " \t"], r"check position\(s\) \[0, 2\]"),
        (["a", "b", "a", "c", "b", "a"], r"these are repeated: \['a', 'b'\]"),
        ({"a", "b"}, r"must be a list of strings, got \{"),
        (frozenset("ab"), "must be a list of strings, got frozenset"),
        ({"a": 1, "b": 2}.keys(), "must be a list of strings, got dict_keys"),
        (["Cafe\u0301", "Caf\u00e9"], "these are repeated: \\['Caf\u00e9'\\]"),
    ],
)
def test_wrong_names(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^class_names .*{message}"):
        check_class_names(names)


def test_accents_are_composed(config: CLIPConfig) -> None:
    """macOS decomposes the names of files; CLIP reads both forms as the same tokens."""
    assert check_class_names(["Cafe\u0301", "\u30ab\u3099"]) == ["Caf\u00e9", "\u30ac"]


@pytest.mark.parametrize("template", ["{}", "a {}.", ["{}", "a {}"], ("a {}",)])
def test_good_templates(template: Any) -> None:
    check_template(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", r"template '' must contain \{\} exactly once"),
        ("{} and {}", r"template '\{\} and \{\}' must contain \{\} exactly once"),
        ([], r"non-empty list of strings, got \[\]"),
        (None, "non-empty list of strings, got None"),
        ({"{}"}, "non-empty list of strings, got {'{}'}"),
        (["{}", 3], "template 3 must contain"),
        (["{}", "a {}", "{}"], r"must not list a template twice, got \['\{\}', 'a \{\}', '\{\}'\]"),
    ],
)
def test_wrong_templates(template: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_template(template)


def test_descriptions() -> None:
    described = {"cat": ["fur"], "dog": ["a bark", "a tail"], "cow": []}
    assert check_descriptions(described, ["cat", "dog"]) is described
    for wrong, missing in (
        (None, ["cat", "dog"]),
        ({"cat": ["fur"], "dog": []}, ["dog"]),
        ({"cat": ["fur", " "], "dog": ["a bark"]}, ["cat"]),
        ({"cat": [""]}, ["dog", "cat"]),
    ):
        with pytest.raises(ValueError, match=r"for every class; check \[") as caught:
            check_descriptions(wrong, ["cat", "dog"])
        assert f"check {missing}." in str(caught.value)


def test_a_tokenizer_is_taken_or_loaded(
    tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory, config: CLIPConfig
) -> None:
    assert load_tokenizer(tokenizer, None) is tokenizer
    assert load_tokenizer(tokenizer, "ignored") is tokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(None, str(folder))
    assert loaded("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
    for nothing in (None, ""):
        with pytest.raises(ValueError, match="Pass tokenizer_name_or_path="):
            load_tokenizer(None, nothing)


def test_code_that_lies_beside_a_tokenizer_is_not_run(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}))
    program = f"""
from pathlib import Path
from transformers import CLIPTokenizer
Path({str(tmp_path / "was run")!r}).touch()
class Own(CLIPTokenizer): pass
"""
    (tmp_path / "own.py").write_text(program)
    assert load_tokenizer(None, str(tmp_path))("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
    assert not (tmp_path / "was run").exists()


def test_what_is_no_tokenizer_is_refused_with_what_to_pass() -> None:
    """A processor holds one; anything else gets told both ways."""

    class Processor:
        tokenizer = "its tokenizer"

    with pytest.raises(ValueError, match=r"^Processor is no tokenizer\. Pass its \.tokenizer\.$"):
        load_tokenizer(Processor(), None)
    with pytest.raises(ValueError, match=r"^int is no tokenizer\. Pass a tokenizer, or where to load one from\.$"):
        load_tokenizer(3, "ignored")


def test_rows_end_with_the_longest_text(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    texts = ["a cat", "a photo of one red bird", "dog"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    ids = tokenize(texts, tokenizer, config)
    length = max(map(len, rows))
    assert ids.dtype == torch.int64
    assert ids.tolist() == [row + [tokenizer.eos_token_id] * (length - len(row)) for row in rows]
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 3


def test_a_text_may_fill_the_context_and_no_more(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    """Cut, it keeps its beginning and its end-of-text token."""
    words = "red " * (CONTEXT - 2)
    full, longer = tokenizer(words)["input_ids"], tokenizer(words + "cat")["input_ids"]
    assert len(full) == CONTEXT
    for truncate in (False, True):
        assert tokenize([words], tokenizer, config, truncate).tolist() == [full]
    assert tokenize([words + "cat", "a"], tokenizer, config, truncate=True)[0].tolist() == full
    with pytest.raises(ValueError, match=rf"red cat' has {len(longer)} tokens, more than the {CONTEXT} of CLIP's"):
        tokenize(["a", words + "cat"], tokenizer, config)


def test_a_text_that_is_cut_leaves_nothing_in_the_log(
    tokenizer: CLIPTokenizer, config: CLIPConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers tells once per tokenizer that a text is too long, which here is handled, or an error."""
    fresh = copy.deepcopy(tokenizer)
    fresh.deprecation_warnings = {}
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert tokenize(["red " * CONTEXT], fresh, config, truncate=True).shape == (1, CONTEXT)
    assert caplog.messages == []


@pytest.mark.parametrize("settings", [{"vocab_size": 10}, {"eos_token_id": 5}])
def test_a_tokenizer_of_another_clip_is_refused(
    settings: dict[str, Any], tokenizer: CLIPTokenizer, config: CLIPConfig
) -> None:
    text = {**config.text_config.to_dict(), **settings}
    with pytest.raises(
        ValueError, match=f"does not belong to this CLIP .vocabulary of {text['vocab_size']}, end-of-text"
    ):
        tokenize(["a cat"], tokenizer, CLIPConfig(text_config=text))


def test_a_text_with_an_end_of_its_own_is_named(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    with pytest.raises(ValueError, match=r"text 'a <\|endoftext\|> cat' contains '<\|endoftext\|>', where CLIP stops"):
        tokenize(["a dog", "a <|endoftext|> cat"], tokenizer, config)


def test_a_token_that_was_added_needs_the_true_end_of_text(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["zyx"])
    text = {**config.text_config.to_dict(), "vocab_size": len(grown), "eos_token_id": 2}
    tokenize(["a cat"], grown, CLIPConfig(text_config=text))
    with pytest.raises(ValueError, match=r"text 'a zyx' has a token added .*eos_token_id = tokenizer.eos_token_id"):
        tokenize(["a zyx"], grown, CLIPConfig(text_config=text))
    assert tokenize(["a zyx"], grown, CLIPConfig(text_config={**text, "eos_token_id": grown.eos_token_id})).shape


def test_the_vocabulary_may_be_used_to_its_last_token(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    largest = max(tokenizer.get_vocab().values())
    assert tokenizer.eos_token_id == largest
    for size, fits in ((largest + 1, True), (largest, False)):
        text = {**config.text_config.to_dict(), "vocab_size": size}
        if fits:
            tokenize(["a cat"], tokenizer, CLIPConfig(text_config=text))
        else:
            with pytest.raises(ValueError, match="does not belong"):
                tokenize(["a cat"], tokenizer, CLIPConfig(text_config=text))


def test_texts_of_a_class_stand_together(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    names, templates = ["cat", "red bird"], ["a {}.", "one {}", "{}"]
    ids = tokenize_classes(names, templates, tokenizer, config)
    assert ids.shape[0] == 6
    texts = ["a cat.", "one cat", "cat", "a red bird.", "one red bird", "red bird"]
    assert torch.equal(ids, tokenize(texts, tokenizer, config))


def test_classes_that_clip_reads_as_one_are_refused(tokenizer: CLIPTokenizer, config: CLIPConfig) -> None:
    with pytest.raises(
        ValueError, match=r"^class_names \[\['Cat', 'cat'\], \['dog', ' dog'\]\] become the same tokens"
    ):
        tokenize_classes(["Cat", "dog", "fish", "cat", " dog"], ["a {}.", "{}"], tokenizer, config)


@pytest.mark.parametrize("eos_token_id", [49, 7, 2])
def test_where_clip_reads(eos_token_id: int) -> None:
    """The first end-of-text token; under the old id 2, which OpenAI's first configurations name, the largest id."""
    ids = torch.tensor([[48, 5, 7, 49, 49], [48, 7, 2, 6, 49], [48, 49, 7, 3, 3]])
    expected = {49: [3, 4, 1], 7: [2, 1, 2], 2: [3, 4, 1]}[eos_token_id]
    assert end_of_text_positions(ids, clip_config(eos_token_id)).tolist() == expected
    assert eot_positions(ids, eos_token_id).tolist() == expected
    assert torch.equal(trim(ids, clip_config(eos_token_id)), ids[:, : max(expected) + 1])
