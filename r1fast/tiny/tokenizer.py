"""The tiny world's tokenizer: one token a word, a number, a symbol or a tag; a Hugging Face fast tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r1fast.tiny.lexicon import vocabulary
from r1fast.tiny.templates import R1_ZERO

MAX_TOKENS = 256


def build_tokenizer(chat_template: str = R1_ZERO) -> PreTrainedTokenizerFast:
    """Build the tokenizer; text is lower-cased and split at white space, anything else is `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary())}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    fast: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast
