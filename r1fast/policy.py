"""The model being trained: a Hugging Face causal LM with its tokenizer, and the two parts that the loss needs."""

# T packed tokens, D model, V vocabulary

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from r1fast.activations import enable_checkpointing, kept_activations
from r1fast.adapters import adapted_layers, merged_weights
from r1fast.attention import ATTENTION_NAME, AttentionContext, PackedContext, register_attention
from r1fast.models import check_checkpoint
from r1fast.packing import position_ids
from r1fast.records import Batch
from r1fast.shared_prompt import SharedPromptContext
from r1fast.whole import num_parameters, whole_shape

if TYPE_CHECKING:
    from r1fast.sharded import Shards

_log = logging.getLogger(__name__)

# config fields that stand between the head's product and the logits
_LOGIT_FIELDS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
# relative L2 error that rounding explains; a scale, a soft cap or a leak between sequences is far above
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(kw_only=True)
class Policy:
    """A causal LM in its compute dtype. `version` counts the optimizer steps; the trainer increments it.

    `eos_token_ids`: every token that ends a completion, the tokenizer's own first (the one to train on).
    `gradient_checkpointing`: recompute each layer's activations in backward instead of keeping them.
    `offload_activations`: what is kept for backward waits in the host's memory.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    gradient_checkpointing: bool = False
    offload_activations: bool = False
    version: int = 0
    shards: Shards | None = field(default=None, repr=False, compare=False)
    """Where ZeRO 3 has shared out the parameters: no process holds them whole."""

    @staticmethod
    def load(
        path: str | Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        gguf_file: str = "",
        trust_remote_code: bool = False,
        gradient_checkpointing: bool = False,
    ) -> Policy:
        """Load a checkpoint directory (never the network) or a hub id; `gguf_file` names a GGUF within it.

        Raises ValueError for files that are missing, truncated or do not fit together, and for a model whose logits
        are not its last hidden state times the head's weight, whose packed sequences see each other, or that has no
        end-of-sequence token.
        """
        register_attention()
        if Path(path).is_dir() and not gguf_file:
            check_checkpoint(Path(path))
        if trust_remote_code:
            _log.warning("trust_remote_code: Python files that come with %s will be run", path)
        tokenizer = load_tokenizer(path, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
        options = _options(path, gguf_file, trust_remote_code)
        if gguf_file:
            from transformers import GgufConfig

            options["quantization_config"] = GgufConfig(dequantize=True)
        module = _load_module(path, dtype, options)
        if gguf_file:
            _forget_quantization(module)
        return Policy.wrap(module, tokenizer, device=device, gradient_checkpointing=gradient_checkpointing)

    @staticmethod
    def wrap(
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device | str = "cpu",
        gradient_checkpointing: bool = False,
    ) -> Policy:
        """Make a policy of a model built with `attn_implementation="r1fast"`; raises like `load`."""
        device = torch.device(device)
        module.to(device)  # type: ignore[arg-type]
        module.train(False)  # dropout stays off: the rollout's log-probs and the trainer's must be the same function
        if gradient_checkpointing:
            enable_checkpointing(module)
        policy = Policy(
            module=module,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids(tokenizer, module.generation_config, module.config),
            device=device,
            dtype=module.dtype,
            gradient_checkpointing=gradient_checkpointing,
        )
        _check_model(policy)
        return policy

    @property
    def head_weight(self) -> Tensor:
        """[V, D] in the compute dtype: logits = hidden @ head_weight.T."""
        head: Any = _head(self.module)
        return cast(Tensor, head.weight)

    @property
    def num_vocab(self) -> int:
        """Rows of the head: tokens that the model can draw."""
        return whole_shape(self.head_weight)[0]

    @property
    def num_parameters(self) -> int:
        """Of the module, shared ones once."""
        return num_parameters(self.module)

    def hidden(self, batch: Batch, attention: AttentionContext | None = None) -> Tensor:
        """Last hidden states [T, D] (after the final norm) of a packed batch, which may be on the host.

        `attention`: in place of the training attention.
        """
        inputs = self._inputs(batch.token_ids, batch.cu_seqlens, batch.parent)
        if attention is not None:
            inputs["attention_context"] = attention
        return self._last_hidden(inputs)

    def hidden_slice(self, token_ids: Tensor, positions: Tensor, attention: AttentionContext) -> Tensor:
        """Last hidden states [L, D] of some tokens of a packed batch, int64 [L] with their positions.

        `attention`: what they see of the batch's other tokens.
        """
        inputs = {
            "input_ids": token_ids.to(self.device, non_blocking=True)[None],
            "position_ids": positions.to(self.device, non_blocking=True)[None],
            "use_cache": False,
            "attention_context": attention,
        }
        return self._last_hidden(inputs)

    def save(self, directory: str | Path) -> None:
        """Write safetensors, config and tokenizer, loadable with AutoModelForCausalLM and AutoTokenizer.

        Adapters are merged into the weights that are written (`adapters.merged_weights`).
        """
        self.saver()(Path(directory))

    def saver(self) -> Callable[[Path], None]:
        """`save`, with weights that ZeRO 3 has shared out gathered now, for rank 0 (collective where they are)."""
        weights = merged_weights(self.module) if adapted_layers(self.module) else None
        if self.shards is not None:
            weights = self.shards.state_dict()

        def save(directory: Path) -> None:
            self.module.save_pretrained(str(directory), state_dict=weights)
            self.tokenizer.save_pretrained(str(directory))

        return save

    def copy(self) -> Policy:
        """A frozen copy with its own weights (the reference); its version is this one's."""
        module = copy.deepcopy(self.module).requires_grad_(False)
        return Policy(
            module=module,
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            device=self.device,
            dtype=self.dtype,
            version=self.version,
        )

    def without_weights(self) -> Policy:
        """For who reads as this policy does: tokenizer, end tokens, device and dtype; the weights are given up."""
        return replace(self, module=self.module.to("meta"))  # type: ignore[arg-type]

    @torch.no_grad()
    def copy_weights_(self, source: Policy) -> None:
        """Take over the weights and version of a policy of the same architecture, in place (reference refresh)."""
        targets, sources = dict(self.module.named_parameters()), dict(source.module.named_parameters())
        if targets.keys() != sources.keys():
            different = sorted(targets.keys() ^ sources.keys())[:4]
            raise ValueError(f"parameters differ: {different}...; both policies must be of the same model")
        if self.shards is not None and source.shards is not None:
            self.shards.copy_(source.shards)
        else:
            for name, target in targets.items():
                target.copy_(sources[name])
        self.version = source.version

    def _inputs(self, token_ids: Tensor, cu_seqlens: Tensor, parent: Tensor | None = None) -> dict[str, Any]:
        shared = None if parent is None else SharedPromptContext(cu_seqlens, parent, self.device)
        return {
            "input_ids": token_ids.to(self.device, non_blocking=True)[None],
            "position_ids": position_ids(cu_seqlens, parent).to(self.device, non_blocking=True)[None],
            "use_cache": False,  # a cache would make some models look for padding in the position ids
            "attention_context": shared or PackedContext(cu_seqlens, self.device),
        }

    def _last_hidden(self, inputs: dict[str, Any]) -> Tensor:
        recompute, offload = self.gradient_checkpointing, self.offload_activations
        with kept_activations(self.module, self.device, recompute=recompute, offload=offload):
            outputs = self.module.base_model(**inputs)
        return cast(Tensor, outputs.last_hidden_state[0])


def _head(module: PreTrainedModel) -> torch.nn.Module | None:
    find: Any = module.get_output_embeddings
    return cast("torch.nn.Module | None", find())


def _forget_quantization(module: PreTrainedModel) -> None:
    """The weights are plain tensors once loaded; what says otherwise would forbid saving and training them."""
    for owner, name in ((module.config, "quantization_config"), (module, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    module.is_quantized = False  # type: ignore[assignment]


def load_tokenizer(path: str | Path, *, gguf_file: str = "", trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint directory (never the network) or a hub id; ValueError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(str(path), **_options(path, gguf_file, trust_remote_code))
    except Exception as error:  # tokenizers raises no narrower one for a tokenizer.json that it cannot read
        first_line = (str(error) if isinstance(error, OSError | ValueError) else repr(error)).strip().splitlines()[0]
        if Path(path).is_dir():
            fix = "tokenizer.json and tokenizer_config.json must be in it, whole: copy or download them again"
        else:
            fix = "it is no directory here, so it must be a hub id that can be reached; give --model DIRECTORY"
        raise ValueError(f"model {str(path)!r}: its tokenizer cannot be loaded ({first_line}); {fix}") from error


def eos_token_ids(tokenizer: Any, *configs: Any, num_vocab: int | None = None) -> tuple[int, ...]:
    """Every end-of-sequence token that the tokenizer and the model's configs (None: absent) name, its own first.

    Raises ValueError where there is none, or none that a model of `num_vocab` tokens could ever draw.
    """
    found: dict[int, None] = {}
    for owner in (tokenizer, *configs):
        value = getattr(owner, "eos_token_id", None)
        found.update(dict.fromkeys(value if isinstance(value, (list, tuple)) else [] if value is None else [value]))
    if not found:
        raise ValueError(
            "the model has no end-of-sequence token (eos_token_id is in neither config, generation_config nor "
            "tokenizer), so no completion could end; set eos_token_id in its config.json"
        )
    if num_vocab is not None and min(found) >= num_vocab:
        raise ValueError(
            f"end-of-sequence tokens {list(found)} lie outside the model's {num_vocab} tokens, so no completion could "
            "end; correct eos_token_id in its config.json, or give the model the tokenizer that it was trained with"
        )
    return tuple(found)


def _options(path: str | Path, gguf_file: str, trust_remote_code: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"local_files_only": Path(path).is_dir(), "trust_remote_code": trust_remote_code}
    return {**options, "gguf_file": gguf_file} if gguf_file else options


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from printing which weights it found: the caller reads that and says what is wrong."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_module(path: str | Path, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """The model, every weight of it from its files: transformers would draw at random what is missing or misshapen."""
    auto_model: Any = AutoModelForCausalLM
    try:
        with without_load_report():
            module, found = auto_model.from_pretrained(
                str(path),
                attn_implementation=ATTENTION_NAME,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except SafetensorError as error:
        raise ValueError(f"{path}: its weights cannot be read ({error}); copy or download it again") from error
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{path}: config.json does not describe these weights: {name} has shape {list(stored)}, by the config it "
            f"should have {list(wanted)}; use the config.json that came with the weights"
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}); copy or download it again"
        )
    return cast(PreTrainedModel, module)


@torch.no_grad()
def _check_model(policy: Policy) -> None:
    """One small batch of two packed sequences: is the head all there is, and are the sequences apart?"""
    name = type(policy.module).__name__
    if policy.module.base_model is policy.module or _head(policy.module) is None:
        raise ValueError(f"{name} has no separate backbone and output head, which training without logits needs")
    num_vocab = policy.num_vocab
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(num_vocab, (18,), generator=generator)
    lengths = (11, 7)
    cu_seqlens = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
    inputs = policy._inputs(token_ids, cu_seqlens)
    hidden_TD = policy.module.base_model(**inputs).last_hidden_state[0]
    product_TV = hidden_TD.float() @ policy.head_weight.float().T
    logits_TV = policy.module(**inputs).logits[0]
    error = _relative_error(product_TV, logits_TV)
    tolerance = _TOLERANCE.get(policy.dtype, 1e-3)
    if not error < tolerance:
        text_config = policy.module.config.get_text_config()
        fields = {field: getattr(text_config, field, None) for field in _LOGIT_FIELDS}
        named = ", ".join(f"{field} = {value}" for field, value in fields.items() if value is not None)
        raise ValueError(
            f"{name}: its logits are not (last hidden state) x (head weight): relative error {error:.3g}, at most "
            f"{tolerance:g} ({named or 'no scale or soft cap named in its config; perhaps a bias'}); this model is "
            "not supported, use one with plain logits (Llama, Qwen2/3, SmolLM, Mistral ...)"
        )
    alone_TD = torch.cat(
        [
            policy.module.base_model(**policy._inputs(part, torch.tensor([0, len(part)]))).last_hidden_state[0]
            for part in torch.split(token_ids, list(lengths))
        ]
    )
    error = _relative_error(hidden_TD, alone_TD)
    if not error < tolerance:
        raise ValueError(
            f"{name}: packed sequences see each other (relative error {error:.3g} against one by one, at most "
            f"{tolerance:g}): a part of the model does not go through the attention interface; use another model"
        )


def _relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.float(), expected.float()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))
