"""The AdamW that [optimizer] names, and what of it is saved: one form for all that keep float32 moments.

Each makes torch's update but for rounding: `adamw_8bit` keeps the moments of tensors of 4,096 numbers and more in 8
bits (Dettmers et al., 8-bit Optimizers via Block-wise Quantization), the others all of them in float32.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from r1fast.build_locks import abandoned_locks
from r1fast.config import ConfigError, OptimizerConfig
from r1fast.whole import whole_shape

if TYPE_CHECKING:
    from types import ModuleType

Groups = list[dict[str, Any]]
MOMENTS = ("exp_avg", "exp_avg_sq")
EIGHT_BIT = "adamw_8bit"


def adamw_groups(parameters: Sequence[Tensor]) -> Groups:
    """AdamW's groups: matrices, which decay, and norms and biases, which do not; a group may be missing."""
    groups: Groups = [
        {"params": [p for p in parameters if len(whole_shape(p)) >= 2]},
        {"params": [p for p in parameters if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: Groups, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer `config.name` over `groups`, at learning rate 0; `fused`: torch's kernel for all tensors at once.

    Raises ConfigError where its library is missing, another one, or cannot compile what it needs.
    """
    settings: dict[str, Any] = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=fused or None)
    try:
        return MAKERS[config.name](groups, settings)
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        cause = f"; {error.__cause__}".splitlines()[0] if error.__cause__ else ""
        raise ConfigError(
            f"optimizer.name = {config.name!r} cannot be used here ({reason}{cause}); `r1fast doctor` says what is "
            "missing, and 'adamw' needs nothing"
        ) from error


def _deepspeed_fused(groups: Groups, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    import_deepspeed("optimizer.name = 'deepspeed_fused'")
    made: torch.optim.Optimizer = import_module("deepspeed.ops.adam").FusedAdam(groups, **settings, adam_w_mode=True)
    return made


def _deepspeed_cpu(groups: Groups, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Its first start on a machine compiles an op (g++, about half a minute)."""
    import_deepspeed("optimizer.name = 'deepspeed_cpu'")
    kind: Any = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    made: torch.optim.Optimizer = kind(groups, **settings, adamw_mode=True)
    return made


def _apex(groups: Groups, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = import_module("apex.optimizers").FusedAdam(groups, **settings, adam_w_mode=True)
    return made


def _adamw_8bit(groups: Groups, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for 4-bit products
    made: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(groups, **settings, weight_decay=0.0)
    return made


MAKERS: Mapping[str, Callable[[Groups, Mapping[str, Any]], torch.optim.Optimizer]] = {
    "deepspeed_fused": _deepspeed_fused,
    "deepspeed_cpu": _deepspeed_cpu,
    "apex": _apex,
    EIGHT_BIT: _adamw_8bit,
}


def import_deepspeed(option: str) -> ModuleType:
    """DeepSpeed, imported when `option` asks for it only: its first start on a CPU compiles for a minute and a half."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it has had to guess
    warnings.filterwarnings("ignore", message=r".*`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    warn_of_locks()
    try:
        return import_module("deepspeed")
    except ImportError as error:
        raise ConfigError(f"{option} needs deepspeed ({error}): pip install deepspeed, or use torch's") from error


def warn_of_locks() -> None:
    """Warn of locks for which DeepSpeed's compilation would wait for ever."""
    for lock in abandoned_locks():
        warnings.warn(
            f"{lock} is left of a compilation that was killed, and DeepSpeed waits for it to vanish: if nothing is "
            "compiled on another machine with this home, delete it",
            stacklevel=2,
        )


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors with dimensions of its state, each once: moments, and what an 8-bit one needs to read them."""
    found = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor) and x.dim()]
    return list({id(tensor): tensor for tensor in found}.values())


def saved_form(optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_steps: int) -> dict[str, Any]:
    """What is saved of an optimizer: `torch.optim.AdamW.state_dict()`, whichever it is; the tensors are the live ones.

    Of `adamw_8bit` it is its own, with `name`: 8-bit moments are no float32 ones.
    """
    if config.name == "adamw":
        return optimizer.state_dict()
    if config.name == EIGHT_BIT:
        return {**optimizer.state_dict(), "name": EIGHT_BIT}
    states = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        own = optimizer.state.get(parameter, {})
        if "exp_avg" in own:
            states[index] = {"step": torch.tensor(float(num_steps)), **{key: own[key] for key in MOMENTS}}
    shapes = [[parameter.shape for parameter in group["params"]] for group in optimizer.param_groups]
    return {"state": states, "param_groups": plain_groups(shapes, config)}


def load_saved_form(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, saved: Mapping[str, Any], num_steps: int
) -> None:
    """Undo `saved_form`, also that of another name; ValueError where one has 8-bit moments and the other has not."""
    check_form(config.name, saved)
    if config.name in ("adamw", EIGHT_BIT):
        optimizer.load_state_dict({"state": saved["state"], "param_groups": saved["param_groups"]})
        return
    for index, parameter in enumerate(_parameters(optimizer)):
        found = saved["state"].get(index)
        if found is not None:
            own = {key: found[key].to(parameter.device, torch.float32, copy=True) for key in MOMENTS}
            optimizer.state[parameter] = {"step": num_steps, **own}
    for group in optimizer.param_groups:
        group["step"] = num_steps  # where the fused ones count


def check_form(name: str, saved: Mapping[str, Any]) -> None:
    """ValueError where moments of 8 bits would have to become float32, or the other way round."""
    found = saved.get("name", "adamw")
    if (found == EIGHT_BIT) != (name == EIGHT_BIT):
        kinds = ("8-bit", "float32") if found == EIGHT_BIT else ("float32", "8-bit")
        raise ValueError(
            f"the saved state has {kinds[0]} moments (optimizer.name = {found!r}) and optimizer.name = {name!r} keeps "
            f"{kinds[1]} ones: go on with {found!r}, or delete the state to start the stage again"
        )


def plain_groups(shapes: Sequence[Sequence[torch.Size]], config: OptimizerConfig) -> Any:
    """The `param_groups` that torch's fused AdamW saves for groups of parameters of these shapes."""
    stand_ins = [[torch.empty(shape, device="meta", requires_grad=True) for shape in group] for group in shapes]
    betas = (config.beta1, config.beta2)
    groups: Groups = [{"params": group, "weight_decay": 0.0} for group in stand_ins]
    plain = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.eps)
    for group in plain.param_groups:
        group["fused"] = True
    return plain.state_dict()["param_groups"]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order in which the state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
