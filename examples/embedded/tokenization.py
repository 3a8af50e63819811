"""A small CLIP tokenizer trained on the captions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], merges: int, context: int) -> CLIPTokenizer:
    """Lower-casing byte-level BPE with CLIP's conventions, complete over bytes so that any text can be tokenised.

    Ids run: 256 bytes inside a word, 256 bytes at a word's end, learned pieces, bos, eos (also unk and pad).

    Args:
        captions: training text.
        merges: most pieces to learn on top of the bytes.
        context: `model_max_length`, in tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    conventions = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    trained.normalizer = conventions.normalizer
    trained.pre_tokenizer = conventions.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    learned = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]][:merges]
    pieces = [left + right for left, right in learned]
    entries = [*alphabet, *(letter + WORD_END for letter in alphabet), *pieces, BOS, EOS]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=learned,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
        model_max_length=context,
    )
