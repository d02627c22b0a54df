"""A language model as judge, over an OpenAI-compatible endpoint: grades as a reward, votes for preference pairs.

Off unless [judge] names an endpoint. A reply that does not end in its one verdict is `unparsed`: a response that
quotes a verdict, and a judge that quotes the response, earn nothing. Scores of a remote model are not reproducible.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from r1fast.config import ConfigError, JudgeConfig
from r1fast.records import Prompt, Rollout
from r1fast.rewards.endpoint import Endpoint, EndpointError, Item, Result
from r1fast.rewards.response import parse_response, response_text
from r1fast.rewards.score import Outcome, Score
from r1fast.source import PreferencePair

MAX_GRADE = 10.0
# The paper's votes are Arena-Hard's: much better, better, a tie; positive for the response shown as A.
VOTES = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}
GRADE_PROMPT = """You grade an answer to a question. Judge whether it is correct, complete and clear.

[Question]
$question

[Reference answer; empty if there is none]
$reference

[Answer to grade]
$response

Explain your judgement briefly. Then end your reply with the grade, a number from 0 (useless) to 10 (perfect), in
exactly this form: <score>7</score>"""
PAIR_PROMPT = """You compare two answers to a question. Judge their correctness, helpfulness and clarity. Do not let
their order or length influence you.

[Question]
$question

[Answer A]
$first

[Answer B]
$second

Explain your judgement briefly. Then end your reply with one verdict of these five, in exactly this form:
[[A>>B]] A is much better, [[A>B]] A is better, [[A=B]] a tie, [[B>A]] B is better, [[B>>A]] B is much better."""
_GRADE = re.compile(r"<score>\s*(\d+(?:\.\d+)?)\s*</score>", re.ASCII)
_VOTE = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preference:
    """What the votes on two responses come to: `margin` in [-2, 2], positive for the first; `ok`, or why there is none.

    `votes` are from the first response's side, in the order asked: as A, as B, as A, ...
    """

    margin: float
    votes: tuple[int, ...]
    outcome: Outcome


class Judge:
    """The judge of [judge]. Calls run in `concurrency` threads; a batch ends within `total_timeout_s`.

    Raises ConfigError for a configuration that cannot work, templates included.
    """

    def __init__(self, config: JudgeConfig, beat: Callable[[str], object] = len) -> None:
        if not config.endpoint or not config.model:
            raise ConfigError(
                f"judge.endpoint = {config.endpoint!r} and judge.model = {config.model!r}: a judge needs both, for "
                "example http://localhost:8000/v1 and the name that the server gives its model"
            )
        self._config = config
        self._endpoint = Endpoint(config, beat)
        self._grade = read_template(config.prompt, GRADE_PROMPT, ("question", "response"), ("reference",))
        self._pair = read_template(config.pair_prompt, PAIR_PROMPT, ("question", "first", "second"), ())
        self.last_error = ""

    def grade(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """The reward `judge`: each summary's grade in [0, 1]; an empty summary earns nothing and asks nothing."""
        return self._batch(rollouts, self._grade_one)

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """Compare responses pair by pair, `votes` times each, in either position equally often."""
        return self._batch(list(zip(prompts, first, second, strict=True)), self._prefer_one)

    def preference_pairs(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, min_margin: float = 1.0
    ) -> list[PreferencePair]:
        """The pairs that differ by more than `min_margin` (the paper's 1), the better response as `chosen`."""
        pairs = []
        for prompt, one, other, preference in zip(
            prompts, first, second, self.prefer(prompts, first, second), strict=True
        ):
            if preference.outcome == "ok" and abs(preference.margin) > min_margin:
                chosen, rejected = (one, other) if preference.margin > 0 else (other, one)
                pairs.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected))
        return pairs

    def take_metrics(self) -> dict[str, float]:
        """As the server's `Endpoint.take_metrics`."""
        return self._endpoint.take_metrics()

    def _batch(self, items: Sequence[Item], act: Callable[[Item, float], Result]) -> list[Result]:
        deadline = time.monotonic() + self._config.total_timeout_s
        return self._endpoint.act_on_all(lambda item: act(item, deadline), items)

    def _grade_one(self, rollout: Rollout, deadline: float) -> Score:
        summary = parse_response(response_text(rollout.prompt, rollout)).summary.strip()
        if not summary:
            return Score(0.0, "empty")
        question, reference = rollout.prompt.text, rollout.prompt.answer
        words = self._grade.substitute(question=question, response=summary, reference=reference)
        reply = self._ask(words, deadline)
        if isinstance(reply, EndpointError):
            return Score(0.0, reply.outcome)
        grade = read_grade(reply)
        return Score(0.0, "unparsed") if grade is None else Score(grade, "ok")

    def _prefer_one(self, item: tuple[Prompt, str, str], deadline: float) -> Preference:
        prompt, first, second = item
        votes: list[int] = []
        for number in range(self._config.votes):
            swapped = number % 2 == 1
            shown = (second, first) if swapped else (first, second)
            words = self._pair.substitute(question=prompt.text, first=shown[0], second=shown[1])
            reply = self._ask(words, deadline, seed=number)
            if isinstance(reply, EndpointError):
                return Preference(0.0, tuple(votes), reply.outcome)
            vote = read_vote(reply)
            if vote is None:  # without it one position would have counted more often
                return Preference(0.0, tuple(votes), "unparsed")
            votes.append(-vote if swapped else vote)
        return Preference(sum(votes) / len(votes), tuple(votes), "ok")

    def _ask(self, words: str, deadline: float, seed: int = 0) -> str | EndpointError:
        try:
            return self._endpoint.ask(words, deadline=deadline, seed=seed)
        except EndpointError as error:
            if not self.last_error:  # the rest is counted by outcome
                logger.warning("the judge did not reply: %s", error)
            self.last_error = str(error)
            return error


def read_grade(reply: str) -> float | None:
    """The grade of a reply in [0, 1]: it ends in the only `<score>`, from 0 to 10; else None."""
    found = _only(_GRADE.finditer(reply), reply)
    grade = float(found) if found is not None else -1.0
    return grade / MAX_GRADE if 0.0 <= grade <= MAX_GRADE else None


def read_vote(reply: str) -> int | None:
    """The vote of a reply, -2 to 2, positive for A: it ends in the only verdict; else None."""
    found = _only(_VOTE.finditer(reply), reply)
    return None if found is None else VOTES[found]


def read_template(path: str, built_in: str, needed: Sequence[str], optional: Sequence[str]) -> Template:
    """A template of `$name` placeholders from a file, or the built-in one. Raises ConfigError for others than named."""
    if not path:
        return Template(built_in)
    try:
        template = Template(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the judge's prompt ({error}); give a text file") from error
    names = set(template.get_identifiers()) if template.is_valid() else set()
    if not set(needed) <= names <= {*needed, *optional}:
        wanted = ", ".join(f"${name}" for name in needed) + "".join(f", perhaps ${name}" for name in optional)
        raise ConfigError(f"{path}: a judge's prompt holds {wanted}, and $$ for a dollar sign; it has {sorted(names)}")
    return template


def _only(found: Iterable[re.Match[str]], reply: str) -> str | None:
    matches = list(found)
    at_end = len(matches) == 1 and not reply[matches[0].end() :].strip()
    return matches[0][1] if at_end else None
