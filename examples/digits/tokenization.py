"""A small CLIP tokenizer trained on the captions."""

from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], vocab_size: int, context: int) -> CLIPTokenizer:
    """Lower-casing byte-level BPE with CLIP's conventions, complete over bytes so that any text can be tokenised.

    Args:
        captions: training text.
        vocab_size: most entries, including 512 for the bytes (inside and at the end of a word) and 2 special tokens.
        context: `model_max_length`, in tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = alphabet + [letter + WORD_END for letter in alphabet]
    reserved = len(bytes_only) + 2
    if vocab_size < reserved:
        raise ValueError(f"vocab_size is {vocab_size}, but the bytes and special tokens alone take {reserved}")
    trained = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    conventions = CLIPTokenizer().backend_tokenizer
    trained.normalizer = conventions.normalizer
    trained.pre_tokenizer = conventions.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    learnt = trained.get_vocab()
    print(len(learnt), [t for t in sorted(learnt, key=learnt.__getitem__)][256:])
    import json
    print(json.loads(trained.to_str())["model"]["merges"][:5])
