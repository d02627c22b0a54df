"""Memory that the plan predicts against memory that is measured: `python -m bench.plan_memory --model DIRECTORY`.

Every case is a process of its own that imports, notes what it holds, and then trains or samples for real: optimizer
steps with and without gradient checkpointing, a rollout, or both with a reference as an RL stage has them. On a CPU the
measure is the kernel's high-water mark of resident memory (VmHWM) above what was resident after the imports; on a GPU
`torch.cuda.max_memory_allocated` of each phase and the cache's arena, which PyTorch does not know. The prediction is
`r1fast.phase_memory`'s, as `r1fast plan` and `--dry-run` print it. Without `--model` the weights are random.

The exit code is 1 where a case is off by more than 10%. Linux only. `--case NAME` measures that case alone, `--json
FILE` keeps the others of the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from r1fast.config import Config, OptimizerConfig
from r1fast.model_size import ModelSize
from r1fast.phase_memory import PhaseMemory, Place, total

ROOT = Path(__file__).resolve().parent.parent
CPU_RESULTS = Path(__file__).parent / "results" / "plan-memory-cpu.json"
MOST_OFF = 0.10
GROUP = 8
PROMPT_TOKENS = 64
TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True)
class Case:
    """`tokens`: of a micro-batch, in sequences of `length`; `rows`: sequences that are sampled at a time."""

    kind: str  # train, rollout, rl
    dtype: str
    checkpointing: bool = False
    tokens: int = 0
    length: int
    rows: int = 0

    @property
    def name(self) -> str:
        """Unique among the cases."""
        parts = [self.kind, self.dtype, *(["checkpointing"] if self.checkpointing else [])]
        return "-".join([*parts, str(self.tokens or self.rows)])


def cases(device: str) -> list[Case]:
    """Those of a device, the small ones first."""
    if device == "cuda":
        trained = [(8192, 1024), (32768, 4096)]
        dtypes, rows, length = ["bfloat16"], 256, 2048
    else:
        trained = [(512, 256), (1536, 512)]
        dtypes, rows, length = ["bfloat16", "float32"], 32, 160
    found = [
        Case(kind="train", dtype=dtype, checkpointing=checkpointing, tokens=tokens, length=own)
        for tokens, own in trained
        for dtype in dtypes
        for checkpointing in (True, False)
    ]
    for dtype in dtypes:
        found.append(Case(kind="rollout", dtype=dtype, length=length, rows=rows))
        found.append(Case(kind="rl", dtype=dtype, tokens=trained[0][0] * 2, length=length, rows=rows))
    return found


def memory_of(case: Case, size: ModelSize, device: str) -> PhaseMemory:
    """The model of memory for a case."""
    config = Config()
    config = replace(
        config,
        optimizer=replace(
            config.optimizer, gradient_checkpointing=case.checkpointing, micro_batch_tokens=max(1, case.tokens)
        ),
        loss=replace(config.loss, kl="k3" if case.kind == "rl" else "none"),
        rewards={},
    )
    return PhaseMemory(
        config=config,
        stage="r1_zero" if case.kind == "rl" else "evaluation" if case.kind == "rollout" else "sft_1",
        size=size,
        place=Place(on_gpu=device == "cuda", compute_bytes=2 if case.dtype == "bfloat16" else 4),
        prompt_tokens=PROMPT_TOKENS,
        limit=case.length - PROMPT_TOKENS,
        rows=case.rows,
    )


def predicted(case: Case, size: ModelSize, device: str) -> dict[str, int]:
    """Phase -> bytes."""
    memory = memory_of(case, size, device)
    phases = {"rollout": memory.rollout, "score": memory.score, "train": memory.train}
    wanted = list(phases) if case.kind == "rl" else [case.kind]
    return {name: total(phases[name]()) for name in wanted}


def measure(case: Case, model: str, device: str) -> dict[str, int]:
    """In this process: phase -> bytes; on a CPU one figure for all, the highest mark of the whole case."""
    import torch
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM  # noqa: F401  before the baseline

    from r1fast.policy import Policy
    from r1fast.rollout.engine import RolloutEngine
    from r1fast.trainer import Trainer

    _import_all()
    mark = _Mark(device)
    policy = Policy.load(
        model, device=device, dtype=getattr(torch, case.dtype), gradient_checkpointing=case.checkpointing
    )
    reference = policy.copy() if case.kind == "rl" else None
    trainer = None if case.kind == "rollout" else Trainer(policy, OptimizerConfig())
    engine = RolloutEngine(policy, rows=case.rows, seed=0) if case.rows else None
    draws = torch.Generator().manual_seed(0)
    for _ in range(1 if trainer is None else 2):  # moments exist from the second step on
        if engine is not None:
            mark.phase("rollout", partial(_rollout, engine, case, draws), engine)
            if device == "cuda":
                engine.sleep()
        if trainer is not None:
            _train(trainer, reference, case, draws, mark)
    return mark.found


def _import_all() -> None:
    """What the first step would import."""
    import r1fast.rollout.generation
    import r1fast.stages.rl  # noqa: F401


def _train(trainer: Any, reference: Any, case: Case, draws: Any, mark: _Mark) -> None:
    """Scores as an RL stage takes them, and an optimizer step, on one micro-batch."""
    import torch

    from r1fast.kernels.grpo_loss import PolicyLoss
    from r1fast.packing import pack
    from r1fast.records import Sequence
    from r1fast.trainer import score

    sequences = [
        Sequence(
            token_ids=torch.randint(3, 1000, (case.length,), generator=draws),
            num_prompt_tokens=PROMPT_TOKENS,
            advantage=float(number % 2 * 2 - 1),
        )
        for number in range(case.tokens // case.length)
    ]
    batches = pack(sequences, micro_batch_tokens=case.tokens)
    assert len(batches) == 1
    old = ref = None
    options = PolicyLoss(kl="none", kl_coef=0.0)
    if reference is not None:
        options = PolicyLoss(kl="k3", kl_coef=0.001)
        old = mark.phase("score", partial(score, trainer.policy, batches, temperature=1.0))
        ref = mark.phase("score", partial(score, reference, batches, temperature=1.0))
    settings = {"loss": options, "denominator": len(sequences), "lr": 1e-6, "old_logp": old, "ref_logp": ref}
    mark.phase("train", partial(trainer.step, batches, **settings))


def _rollout(engine: Any, case: Case, draws: Any) -> int:
    """Every sample as long as it may be; the number of tokens."""
    import torch

    from r1fast.records import Prompt
    from r1fast.sampling import Sampling

    texts = torch.randint(3, 1000, (case.rows // GROUP, PROMPT_TOKENS), generator=draws).tolist()
    prompts = [Prompt(id=str(number), text="", token_ids=tuple(ids)) for number, ids in enumerate(texts)]
    limit = case.length - PROMPT_TOKENS
    settings = Sampling(temperature=1.0, max_tokens=limit, min_tokens=limit, stage="bench", visit=0)
    return sum(len(rollout.token_ids) for rollout in engine.generate(prompts, GROUP, settings))


class _Mark:
    """The highest use of memory above that at the start: of each phase on a GPU, of everything so far on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.found: dict[str, int] = {}
        if device == "cpu":
            self.before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def phase(self, name: str, work: Callable[[], Any], engine: Any = None) -> Any:
        if self.device == "cpu":
            result = work()
            self.found["all"] = _status("VmHWM") - self.before
            return result
        import torch

        torch.cuda.reset_peak_memory_stats()
        result = work()
        torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated()
        if engine is not None and engine.store is not None:
            used += engine.store.num_pages * engine.shape.page_bytes
        self.found[name] = max(used, self.found.get(name, 0))
        return result


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10


def run(case: Case, model: str, device: str, size: ModelSize) -> dict[str, Any]:
    """Measure in a fresh process, and compare."""
    words = [sys.executable, "-m", "bench.plan_memory", "--worker", json.dumps(asdict(case)), "--model", model]
    found = subprocess.run(
        [*words, "--device", device], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if found.returncode:
        raise RuntimeError(f"{case.name} ended with {found.returncode}: {found.stderr[-2000:]}")
    measured = json.loads(found.stdout.splitlines()[-1])
    expected = predicted(case, size, device)
    if device == "cpu":  # memory that a phase has had stays with the process
        expected = {"all": max(expected.values())}
    worst = max(expected, key=lambda name: abs(expected[name] / measured[name] - 1))
    return {
        **asdict(case),
        "predicted": expected,
        "measured": measured,
        "ratio": {name: round(expected[name] / measured[name], 4) for name in expected},
        "worst_ratio": round(expected[worst] / measured[worst], 4),
    }


def main() -> int:
    """Print a line for each case; 1 where one is off."""
    parser = argparse.ArgumentParser(prog="bench.plan_memory")
    parser.add_argument("--model", default="")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(Case(**json.loads(arguments.worker)), arguments.model, arguments.device)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or random_model(Path(folder))
        return _compare(arguments, model)


def _compare(arguments: argparse.Namespace, model: str) -> int:
    from transformers import AutoConfig

    from bench.device import describe

    size = ModelSize.of(AutoConfig.from_pretrained(model))
    known = {case.name: case for case in cases(arguments.device)}
    if unknown := set(arguments.case) - known.keys():
        raise SystemExit(f"no case {sorted(unknown)}; there are {', '.join(known)}")
    file: Path | None = arguments.json
    rows: dict[str, Any] = {}
    if file is not None and file.exists():
        rows = json.loads(file.read_text(encoding="utf-8"))["cases"]
    for name in arguments.case or known:
        row = rows[name] = run(known[name], model, arguments.device, size)
        mib = {key: round(value / 2**20) for key, value in row["measured"].items()}
        print(f"{name}: measured {mib} MiB, predicted over it {row['ratio']}", flush=True)
        if file is not None:
            weights = "random" if not arguments.model else "of a checkpoint"
            whole = {"about": describe(arguments.device), "weights": weights, "cases": rows}
            file.write_text(f"{json.dumps(whole, indent=1)}\n", encoding="utf-8")
    return int(any(abs(row["worst_ratio"] - 1) > MOST_OFF for row in rows.values()))


def random_model(folder: Path) -> str:
    """A directory with SmolLM2-135M's shape, random weights and a word for every token."""
    import torch
    from transformers import AutoModelForCausalLM

    from bench.rollout_models import write_model
    from bench.rollout_work import Shape
    from r1fast.architectures import known_config

    described = known_config("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert described is not None
    fields = {name: getattr(described, name) for name in Shape.__dataclass_fields__}
    write_model(Shape(**fields), folder, max_position_embeddings=8192)
    AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16).save_pretrained(str(folder))
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
