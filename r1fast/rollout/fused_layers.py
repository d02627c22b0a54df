"""A model's layers on a CPU, for as long as its weights do not change: packed weights, and few calls between products.

A product with a plain weight reorders it every time, a third to a half of the time at 32 rows; and the chains of
small operations between the products take as long as half of them.
"""

# B batch, S tokens of one call, D model, H query heads, K KV heads, E head_dim, N features

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from r1fast.adapters import is_adapted, low_rank
from r1fast.attention import attention_forward
from r1fast.cpu_products import multiplied_in_fp32
from r1fast.ops.elementwise import add_rms_norm, rotate_heads, silu_mul

TYPICAL_ROWS = 64  # what oneDNN chooses the order for
# Layers of the form h += o(attention(norm(h))); h += down(silu(gate(norm(h))) * up(norm(h))), whose attention rotates
# whole heads and may normalise them before. A layer of another name runs as it is, its products packed.
PLAIN_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
SILU = ("SiLU", "SiLUActivation")


@contextmanager
def fused_layers(module: nn.Module) -> Iterator[None]:
    """Within, a model's layers on a CPU run fused, its other bf16 and fp32 `nn.Linear`s packed: as much memory again.

    Weights must not change meanwhile, and nothing in it is differentiable. Results are the model's own but for the
    order of some sums; a row's do not depend on the other rows. Elsewhere than on a CPU nothing happens.
    """
    changed: list[tuple[dict[str, Any], Any]] = []
    try:
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            inside: set[nn.Module] = set()
            for layer in module.modules():
                forward: FusedLayer | PackedLinear | None = FusedLayer.of(layer)
                if forward is not None:
                    inside.update(layer.modules())
                elif layer not in inside and _is_linear(layer) and _pays(layer.weight):
                    inside.update(layer.modules())
                    forward = PackedLinear([layer])
                if forward is not None:
                    own: dict[str, Any] = vars(layer)
                    changed.append((own, own.get("forward")))
                    own["forward"] = forward  # in front of the class's
        yield
    finally:
        restore_forwards(changed)


def restore_forwards(changed: Sequence[tuple[dict[str, Any], Any]]) -> None:
    """Give modules (their attributes, the `forward` of their own that they had or None) back what they ran before."""
    for own, before in changed:
        del own["forward"]
        if before is not None:
            own["forward"] = before


class PackedLinear:
    """One product for several linear layers of one input, their outputs side by side."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        weight = (
            torch.cat([layer.weight.detach() for layer in layers]) if len(layers) > 1 else layers[0].weight.detach()
        )
        self.low_rank = LowRank.of(layers)
        bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            zero = weight.new_zeros(1)
            biases = [zero.expand(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
            bias = torch.cat([bias.detach() for bias in biases])
        self.packed = _Packed(weight, bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        product = self.packed.product(hidden)
        return product if self.low_rank is None else self.low_rank.add_to(product, hidden)


@dataclass(frozen=True, eq=False)
class LowRank:
    """The adapters of layers of one input: what they add to the product, in two products for all of them."""

    down: _Packed
    """Their A one above the other."""
    up: _Packed
    """Their B as the blocks of a diagonal."""
    scale: float

    @staticmethod
    def of(layers: list[nn.Linear]) -> LowRank | None:
        """None where no layer has an adapter that is on."""
        parts = [low_rank(x) if is_adapted(x) and not x.disable_adapters else None for x in layers]
        if not any(parts):
            return None
        weight = layers[0].weight
        total = sum(part[0].shape[0] for part in parts if part)
        total += -total % 16  # so that a row does not depend on the other rows
        down = weight.new_zeros(total, layers[0].in_features)
        up = weight.new_zeros(sum(layer.out_features for layer in layers), total)
        row = column = 0
        for layer, part in zip(layers, parts, strict=True):
            if part:
                rank = part[0].shape[0]
                down[column : column + rank] = part[0].detach()
                up[row : row + layer.out_features, column : column + rank] = part[1].detach()
                column += rank
            row += layer.out_features
        (scale,) = {part[2] for part in parts if part}
        return LowRank(_Packed(down), _Packed(up), scale)

    def add_to(self, product: Tensor, hidden: Tensor) -> Tensor:
        return product.add_(self.up.product(self.down.product(hidden)), alpha=self.scale)


class _Packed:
    """A weight and a bias as oneDNN's product wants them; results are rounded to their dtype in any case."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype = weight.dtype
        self.wide = multiplied_in_fp32(weight.dtype)
        self.bias = bias.float() if self.wide and bias is not None else bias
        weight = weight.float() if self.wide else weight
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)

    def product(self, hidden: Tensor) -> Tensor:
        """hidden weight' + bias."""
        hidden = hidden.float() if self.wide else hidden
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, "none", [], "")
        return product.to(self.dtype) if self.wide else product


@dataclass(frozen=True, eq=False)
class FusedLayer:
    """A decoder layer's forward; it takes what transformers gives to the layer."""

    attention: Any
    num_heads: int
    num_kv_heads: int
    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]
    """Before the attention, and before the MLP: weight, epsilon."""
    head_norms: tuple[Tensor, Tensor, float] | None

    @staticmethod
    def of(layer: nn.Module) -> FusedLayer | None:
        """None where the layer is not one of PLAIN_LAYERS as transformers makes them, on a CPU, in bf16 or fp32."""
        found: Any = layer
        if type(layer).__name__ not in PLAIN_LAYERS or not type(layer).__module__.startswith("transformers.models."):
            return None
        attention, mlp = found.self_attn, found.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_proj, mlp.up_proj]
        linears = [*qkv, attention.o_proj, *gate_up, mlp.down_proj]
        if not all(_is_linear(linear) and _pays(linear.weight) for linear in linears):  # quantised, on a GPU
            return None
        dim, head_dim = attention.q_proj.in_features, attention.head_dim
        if type(mlp.act_fn).__name__ not in SILU or dim % 16 or head_dim % 16 or mlp.gate_proj.out_features % 16:
            return None
        norms = [
            (norm.weight.detach(), norm.variance_epsilon)
            for norm in (found.input_layernorm, found.post_attention_layernorm)
        ]
        head_norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        if window is not None or attention.training or any(_has_hooks(part) for part in layer.modules()):
            return None
        return FusedLayer(
            attention=attention,
            num_heads=attention.q_proj.out_features // head_dim,
            num_kv_heads=attention.k_proj.out_features // head_dim,
            qkv=PackedLinear(qkv),
            out=PackedLinear([attention.o_proj]),
            gate_up=PackedLinear(gate_up),
            down=PackedLinear([mlp.down_proj]),
            norms=(norms[0], norms[1]),
            head_norms=(*(norm.weight.detach() for norm in head_norms), head_norms[0].variance_epsilon)
            if head_norms
            else None,
        )

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B, S, D] to [B, S, D]; the argument is used up. Raises what the attention context raises."""
        hidden = hidden_states.contiguous()
        batch, tokens, _ = hidden.shape
        (norm, eps), (mlp_norm, mlp_eps) = self.norms
        heads = self.qkv(add_rms_norm(hidden, None, norm, eps))
        cosine, sine = position_embeddings
        query_norm, key_norm, head_eps = self.head_norms or (None, None, 0.0)
        rotate_heads(
            heads,
            cosine.contiguous(),
            sine.contiguous(),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            query_norm_E=query_norm,
            key_norm_E=key_norm,
            norm_eps=head_eps,
        )
        heads = heads.view(batch, tokens, self.num_heads + 2 * self.num_kv_heads, -1).transpose(1, 2)
        query, key, value = heads.split_with_sizes([self.num_heads, self.num_kv_heads, self.num_kv_heads], 1)
        attended, _ = attention_forward(
            self.attention, query, key, value, attention_mask, scaling=self.attention.scaling, **kwargs
        )
        hidden_attended = self.out(attended.reshape(batch, tokens, -1))
        normed = add_rms_norm(hidden, hidden_attended, mlp_norm, mlp_eps)
        return hidden.add_(self.down(silu_mul(self.gate_up(normed))))


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear layer, or one with an adapter, which has the attributes of one."""
    if is_adapted(layer):
        base: Any = layer.base_layer
        return type(base) is nn.Linear and not any(_has_hooks(part) for part in layer.modules())
    return type(layer) is nn.Linear and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _pays(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)
