"""A tiny random Llama and a word-level tokenizer, built in code: what the tests train."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r1fast.attention import ATTENTION_NAME, register_attention
from r1fast.policy import Policy
from r1fast.records import Sequence

NUM_VOCAB = 97
EOS = 1


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{n}" for n in range(NUM_VOCAB - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_config(**changes: Any) -> LlamaConfig:
    fields: dict[str, Any] = {
        "vocab_size": NUM_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "initializer_range": 0.08,
    }
    return LlamaConfig(**(fields | changes))


def tiny_policy(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Policy:
    """`options`: `gradient_checkpointing` for the policy, everything else for the config."""
    register_attention()
    checkpointing = options.pop("gradient_checkpointing", False)
    config = tiny_config(**options)
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(seed)
    module = LlamaForCausalLM(config).to(dtype)
    return Policy.wrap(module, tiny_tokenizer(), gradient_checkpointing=checkpointing)


def random_sequences(count: int, seed: int = 0, longest: int = 40, with_logp: bool = True) -> list[Sequence]:
    """Random prompts and completions with advantages of both signs; the rollout's log-probs are plausible."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for _ in range(count):
        length = int(torch.randint(3, longest, (1,), generator=generator))
        num_prompt = int(torch.randint(1, length, (1,), generator=generator))
        logp = -4.0 - torch.rand(length - num_prompt, generator=generator)
        sequences.append(
            Sequence(
                token_ids=torch.randint(NUM_VOCAB, (length,), generator=generator),
                num_prompt_tokens=num_prompt,
                advantage=float(torch.randn((), generator=generator)),
                rollout_logp=logp if with_logp else None,
                log_kept_mass=torch.zeros_like(logp) if with_logp else None,
            )
        )
    return sequences
