"""What a reward returns: a score, or a question that only a verifier process may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from r1fast.records import Prompt, Rollout

Outcome = Literal["ok", "wrong", "partial", "unparsed", "empty", "timeout", "crash"]
ERRORS: frozenset[Outcome] = frozenset({"timeout", "crash"})


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is the unweighted reward; `outcome` says why: `unparsed` nothing to judge, `empty` judged on nothing.

    `timeout` and `crash` are failures of the verifier, never of the policy: value 0, counted, fatal above a share.
    """

    value: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Check:
    """A call of a verifier that may hang or crash, so it runs in a killable process (`verifiers.VerifierPool`).

    `verifier` names a function of `verifier_process`, `arguments` are its string arguments. With `exact`, a partial
    score counts as wrong.
    """

    verifier: Literal["math", "gym"]
    arguments: tuple[str, ...]
    exact: bool = True


# A reward must return at once: anything that may hang returns a `Check`.
Reward = Callable[[Prompt, Rollout], "Score | Check"]

OK = Score(1.0, "ok")
WRONG = Score(0.0, "wrong")
UNPARSED = Score(0.0, "unparsed")
