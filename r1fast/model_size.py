"""What plans need to know of a model, read from its Hugging Face config without allocating weights."""

# k experts of a token, E experts

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# What configs call the number of routed experts.
_NUM_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder; a width is in numbers of a token in a layer, a mean over the layers where they differ.

    `intermediate_size`: of the MLP, or of all experts that a token visits together. `kv_width`: half of what stays in
    the cache: key-value heads x head dimension; with latent attention (DeepSeek-V3: `latent`) half of latent and
    rotary key. `attention_width`: queries, keys, values and output in training. `score_width`: queries and values as
    the products of scores see them; `normed_width`: what norms read. 0 for the last three: of equal heads, two norms of
    `hidden_size`. `expert_params`: of all routed experts, of which a token visits the share `expert_share`.
    `looked_up_params`: of an embedding that is no head, too: no product reads it. `linear_widths`: name of linear
    layers -> their features in and out, summed over the model; without the head. Numbers of heads: 0 where unknown.
    """

    num_params: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    kv_width: int
    attention_width: int = 0
    score_width: int = 0
    normed_width: int = 0
    latent: bool = False
    expert_params: int = 0
    expert_share: float = 1.0
    experts_per_token: int = 0
    looked_up_params: int = 0
    linear_widths: tuple[tuple[str, int], ...] = ()
    num_heads: int = 0
    num_kv_heads: int = 0

    def __post_init__(self) -> None:
        widths = {
            "attention_width": 2 * self.hidden_size + 2 * self.kv_width,
            "score_width": 2 * self.hidden_size,
            "normed_width": 2 * self.hidden_size,
        }
        for name, value in widths.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @staticmethod
    def of(hf_config: Any) -> ModelSize:
        """The sizes of the model that a Hugging Face config describes; allocates no weights."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config)  # type: ignore[no-untyped-call]
        text = hf_config.get_text_config()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        experts = _num_experts(text)
        parameters = list(model.named_parameters())
        return ModelSize(
            num_params=sum(parameter.numel() for _, parameter in parameters),
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=_mlp_width(text),
            num_layers=text.num_hidden_layers,
            expert_params=sum(p.numel() for name, p in parameters if ".experts." in name),
            expert_share=text.num_experts_per_tok / experts if experts else 1.0,
            experts_per_token=text.num_experts_per_tok if experts else 0,
            looked_up_params=0 if tied else text.vocab_size * text.hidden_size,
            linear_widths=_linear_widths(model),
            **_attention(text, heads_are_normed=any(name.endswith("q_norm.weight") for name, _ in parameters)),
        )

    def sequence_groups(self) -> list[int]:
        """The powers of 2 up to 16 that share its heads out: `distributed.sequence_parallel` may be them."""
        return [
            n
            for n in (2, 4, 8, 16)
            if self.num_heads and not self.num_heads % n and (not self.num_kv_heads % n or not n % self.num_kv_heads)
        ]

    @property
    def active_params(self) -> int:
        """Parameters that a token meets."""
        return round(self.touched_params(1))

    def touched_params(self, tokens: float) -> float:
        """Parameters that some of `tokens` tokens meets, if experts are visited evenly."""
        # of an expert: 1 - (1 - k/E)^tokens
        dense = self.num_params - self.expert_params
        unvisited: float = (1 - self.expert_share) ** tokens
        return dense + self.expert_params * (1 - unvisited)

    def forward_flops(self, length: float) -> float:
        """FLOPs of one token's forward pass in a causal sequence of `length` tokens, of which it sees half."""
        products = 2.0 * (self.active_params - self.looked_up_params)
        return products + self.num_layers * self.score_width * length

    def adapter_params(self, rank: int, targets: Collection[str]) -> int:
        """Parameters of low-rank adapters on the linear layers that `targets` names; all-linear: on all."""
        names = {target.rpartition(".")[2] for target in targets}
        return rank * sum(width for name, width in self.linear_widths if "all-linear" in names or name in names)

    def kv_token_bytes(self, compute_bytes: int) -> int:
        """That a token leaves in the cache, in all layers."""
        return 2 * self.num_layers * self.kv_width * compute_bytes


def _linear_widths(model: Any) -> tuple[tuple[str, int], ...]:
    from torch import nn

    widths: dict[str, int] = {}
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            own = name.rpartition(".")[2]
            widths[own] = widths.get(own, 0) + layer.in_features + layer.out_features
    return tuple(sorted(widths.items()))


def _num_experts(text: Any) -> int:
    return int(next((getattr(text, name) for name in _NUM_EXPERTS if getattr(text, name, None)), 0))


def _mlp_width(text: Any) -> int:
    """Mean over the layers of the MLP's width; of experts that of all that a token visits, shared ones included."""
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    if not _num_experts(text):
        return int(dense)
    visited = text.num_experts_per_tok + (getattr(text, "n_shared_experts", None) or 0)
    wide = visited * (getattr(text, "moe_intermediate_size", None) or dense)
    num_dense = getattr(text, "first_k_dense_replace", 0)
    return int((num_dense * dense + (text.num_hidden_layers - num_dense) * wide) / text.num_hidden_layers)


def _attention(text: Any, *, heads_are_normed: bool) -> dict[str, Any]:
    num_heads = text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):  # latent attention: DeepSeek-V2 and V3
        query = num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
        value = num_heads * text.v_head_dim
        return {
            "kv_width": (text.kv_lora_rank + text.qk_rope_head_dim) // 2,
            "attention_width": 2 * query + 2 * value,
            "score_width": query + value,
            "normed_width": 2 * text.hidden_size + (text.q_lora_rank or 0) + text.kv_lora_rank,
            "latent": True,
            "num_heads": num_heads,
            "num_kv_heads": num_heads,
        }
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    query = num_heads * head_dim
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    kv_width = num_kv_heads * head_dim
    return {
        "kv_width": kv_width,
        "attention_width": 2 * query + 2 * kv_width,
        "score_width": 2 * query,
        "normed_width": 2 * text.hidden_size + (query + kv_width if heads_are_normed else 0),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
    }
