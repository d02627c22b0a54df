"""Models of a shape without weights: a directory of config.json and a tokenizer, which every variant can start from."""

from __future__ import annotations

import json
from pathlib import Path

from bench.rollout_work import Shape

EOS = 1


def write_model(shape: Shape, directory: Path, *, max_position_embeddings: int) -> None:
    """config.json of the shape, and a word for every token of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # seconds, which reading this module must not take
    from transformers import AutoConfig, PreTrainedTokenizerFast

    words = {
        word: n for n, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{n}" for n in range(3, shape.vocab_size))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(directory))
    sizes = {name: getattr(shape, name) for name in Shape.__dataclass_fields__ if name != "model_type"}
    config = AutoConfig.for_model(
        shape.model_type,
        **sizes,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
        architectures=[{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[shape.model_type]],
    )
    (directory / "config.json").write_text(json.dumps(config.to_dict(), default=str, indent=1), encoding="utf-8")
