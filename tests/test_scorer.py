"""The scorer and its verifier processes: typed outcomes, wall clocks, limits, self-test."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import wait
from dataclasses import replace

import pytest

from r1fast.records import Prompt, Rollout, ScoredRollout
from r1fast.rewards.score import Check
from r1fast.scorer import Begun, Scorer, written

HANGS = "9^{9^{9^{9}}}"
GOLD = "\\frac{\\sqrt{3}}{2}"


def question(answer: str = "14", kind: str = "math", name: str = "p") -> Prompt:
    return Prompt(id=name, text="question", token_ids=(1,), kind=kind, answer=answer)


def answered(prompt: Prompt, answer: str) -> Rollout:
    return written(prompt, f"<think> so </think> <answer> {answer} </answer>")


def test_rewards_are_weighted_by_kind_and_step() -> None:
    scorer = Scorer(
        {
            "math": {"accuracy": 1.0, "format": 0.2, "accuracy_any": 0.0},
            "general": {"helpful": ((0, 0.0), (10, 0.5)), "format": 1.0},
        },
        model_rewards={"helpful": lambda rollouts: [len(rollout.text) for rollout in rollouts]},
    )
    general = written(question("", "general"), "hello")
    right, wrong = answered(question(), "14"), answered(question(), "15")
    early = scorer.score([right, general, wrong], step=0)
    assert [item.reward for item in early] == [1.2, 1.0, 0.2]
    assert early[0].parts == {"accuracy": 1.0, "format": 1.0, "accuracy_any": 1.0}
    assert early[1].parts == {"format": 1.0}  # a model reward of weight 0 is not computed
    assert [item.outcome for item in early] == ["ok", "ok", "wrong"]
    assert [item.rollout for item in early] == [right, general, wrong]
    late = scorer.score([right, general], step=10)
    assert late[1].reward == 1.0 + 0.5 * 5
    metrics = scorer.take_metrics()
    assert metrics["accuracy_sum"] == 2.0 and metrics["accuracy_count"] == 3
    assert metrics["outcome/accuracy/wrong_count"] == 1
    assert scorer.take_metrics() == {}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[rewards.math\] acuracy: unknown reward"):
        Scorer({"math": {"acuracy": 1.0}})
    scorer = Scorer({"math": {"accuracy": 1.0}})
    with pytest.raises(ValueError, match="kind 'code'"):
        scorer.score([answered(question(kind="code"), "14")])


def test_algebra_is_verified_and_a_hang_is_killed_in_time() -> None:
    scorer = Scorer({"math": {"accuracy": 1.0}}, timeout_s=2.0)
    prompt = question(GOLD)
    scorer.score([answered(prompt, "\\sqrt{3}/2")])  # the imports
    start = time.monotonic()
    answers = ["\\sqrt{3}/2", HANGS, "\\frac{3}{2\\sqrt{3}}", "\\sqrt{3}", "\\frac{" * 50, "x \x00 y"]
    scored = scorer.score([answered(prompt, answer) for answer in answers])
    assert [item.outcome for item in scored] == ["ok", "timeout", "ok", "wrong", "wrong", "wrong"]
    assert [item.reward for item in scored] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert time.monotonic() - start < 120.0  # not for ever; a killed process imports sympy anew
    assert scorer.take_metrics()["outcome/accuracy/timeout_count"] == 1
    scorer.close()


def algebra_groups(count: int) -> list[list[Rollout]]:
    """Groups of 3 whose answers need a verifier: one right, one wrong, one that differs from group to group."""
    groups = []
    for number in range(count):
        prompt = question(GOLD, name=f"p{number}")
        texts = [f"\\sin(\\frac{{\\pi}}{{{angle}}})" for angle in (3, 6)]
        texts.append(f"\\cos(\\frac{{\\pi}}{{{6 + number}}})")
        groups.append([answered(prompt, text) for text in texts])
    return groups


def places_in_batch(rollouts: Sequence[Rollout]) -> list[float]:
    """A model reward that depends on what else is in its batch, and where."""
    return [len(rollouts) + place / 8 for place in range(len(rollouts))]


def flat(scored: Sequence[ScoredRollout]) -> list[object]:
    return [(id(item.rollout), item.reward, list(item.parts.items()), item.outcome) for item in scored]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_groups_are_scored_as_the_whole_is(num_workers: int) -> None:
    weights = {"math": {"accuracy": 1.0, "model": ((0, 0.0), (5, 0.5)), "accuracy_any": 0.0, "format": 0.2}}
    groups = algebra_groups(5)
    prompts = [group[0].prompt for group in groups]
    for step in (0, 5):
        found = []
        for order in (None, [0, 1, 2, 3, 4], [3, 0, 4, 1, 2]):
            rewards = {"model": places_in_batch}
            scorer = Scorer(weights, model_rewards=rewards, num_workers=num_workers, timeout_s=30.0)
            if order is None:
                scored = scorer.score([rollout for group in groups for rollout in group], step)
            else:
                scored = scorer.score_groups(prompts, (groups[number] for number in order), step)
            found.append((flat(scored), scorer.take_metrics()))
            scorer.close()
        assert found[0] == found[1] == found[2]
        assert [item.parts["accuracy"] for item in scored] == [1.0, 0.0, 1.0] + [1.0, 0.0, 0.0] * 4
    assert scorer.score_groups([], (group for group in groups[:0])) == []


def test_a_group_is_verified_while_others_are_generated() -> None:
    scorer = Scorer({"math": {"accuracy": 1.0}}, timeout_s=30.0)
    groups = algebra_groups(2)
    submitted: list[Begun] = []
    submit = scorer.submit
    scorer.submit = lambda group: submitted.append(submit(group)) or submitted[-1]  # type: ignore[method-assign, func-returns-value]

    def generated() -> Generator[list[Rollout], None, None]:
        yield groups[0]
        assert not wait([future for *_, future in submitted[0].checks], timeout=60.0).not_done
        yield groups[1]

    scored = scorer.score_groups([group[0].prompt for group in groups], generated())
    assert [item.reward for item in scored] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    times = scorer.take_times()
    assert times["time/verify_s"] > 0.0 and times["time/score_s"] > 0.0
    assert set(scorer.take_times().values()) == {0.0}
    scorer.close()


def test_verifiers_begin_with_samples_whose_group_has_not_ended() -> None:
    scorer = Scorer({"math": {"accuracy": 1.0, "accuracy_any": 0.0, "format": 0.1}}, timeout_s=30.0)
    groups = algebra_groups(2)
    asked: list[Check] = []
    judged: list[Rollout] = []
    submit, rule = scorer._pool.submit, scorer._rules["accuracy"]
    scorer._pool.submit = lambda check: asked.append(check) or submit(check)  # type: ignore[method-assign, func-returns-value]
    scorer._rules["accuracy"] = lambda prompt, rollout: judged.append(rollout) or rule(prompt, rollout)  # type: ignore[func-returns-value]

    def generated(ahead: bool) -> Generator[list[Rollout], None, None]:
        for group in groups:
            for rollout in group[:-1] if ahead else ():
                scorer.foresee(rollout)
            assert bool(asked) == (ahead or group is not groups[0])
            yield group

    found = {}
    for ahead in (False, True):
        asked.clear()
        judged.clear()
        scored = scorer.score_groups([group[0].prompt for group in groups], generated(ahead))
        found[ahead] = flat(scored), scorer.take_metrics(), Counter(asked)  # what was begun is not asked again
        assert len(judged) == sum(map(len, groups))
    assert found[True] == found[False]
    scorer.foresee(groups[0][0])
    assert scorer._early
    scorer.score_groups([], (group for group in groups[:0]))
    assert not scorer._early and not scorer._foreseen
    scorer.close()


def test_an_exception_in_generation_leaves_nothing_behind() -> None:
    scorer = Scorer({"math": {"accuracy": 1.0}}, num_workers=1, timeout_s=30.0)
    groups = algebra_groups(3)
    closed = []

    def generated(error: BaseException | None) -> Generator[list[Rollout], None, None]:
        try:
            yield from groups[:2]
            if error:
                raise error
            yield [answered(question(kind="code"), "1")]
        finally:
            closed.append(error)

    prompts = [group[0].prompt for group in groups]
    for error in (FloatingPointError("not finite"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            scorer.score_groups(prompts, generated(error))
    generator = generated(None)
    with pytest.raises(ValueError, match="kind 'code'"):  # a reward's fault closes the engine's call
        scorer.score_groups(prompts, generator)
    assert len(closed) == 3
    assert scorer.take_metrics() == {}
    finished = [scorer.submit(group) for group in groups[:2]]  # whoever wants them scores what had finished
    assert [item.reward for item in scorer.result(finished)] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    scorer.close()


def test_too_many_failures_stop_the_run() -> None:
    scorer = Scorer({"gym": {"accuracy": 1.0}}, max_error_share=0.05)
    broken = {"gym_dataset": "no_such_task", "gym_config": "{}", "gym_entry": "{}"}
    prompt = Prompt(id="p7", text="q", token_ids=(1,), kind="gym", answer="14", metadata=broken)
    with pytest.raises(RuntimeError, match=r"64 of the last 64 scores failed.*p7 crash.*no_such_task"):
        scorer.score([answered(prompt, "15")] * 64)
    scorer.close()


def test_gold_answers_must_score_one() -> None:
    scorer = Scorer({"math": {"accuracy": 1.0, "format": 0.2}, "general": {"format": 1.0}})
    scorer.check_gold([question("14"), question(GOLD), question("B"), question("", "general")])
    some = [question("14"), question("", name="empty"), question("15"), question("", "general")]
    with pytest.raises(ValueError, match=r"1 of 3 gold answers do not score 1: empty \(accuracy: unparsed"):
        scorer.check_gold(some)
    with pytest.raises(ValueError, match=r"1 of 3 gold answers do not score 1 \(allowed share 0.3\): empty"):
        scorer.check_gold(some, max_bad_share=0.3)
    assert scorer.check_gold(some, max_bad_share=0.34) == 1
    scorer.close()


@pytest.mark.parametrize("prefix", ["", "<think>"])
def test_gold_answers_stand_where_the_template_leaves_off(prefix: str) -> None:
    scorer = Scorer({"math": {"accuracy_in_format": 1.0}})
    prompt = question("14")
    opened = replace(prompt, metadata={**prompt.metadata, "response_prefix": prefix})
    scorer.check_gold([opened])
    with pytest.raises(ValueError, match="accuracy_in_format: unparsed"):
        scorer.check_gold([replace(opened, metadata={"response_prefix": "<think> one <think>"})])
    scorer.close()
