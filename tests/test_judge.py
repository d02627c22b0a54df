"""The judge against a real server process: grades, votes, every way to fail, clocks, retries, counters."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from servers import judge_server

from r1fast.config import ConfigError, JudgeConfig
from r1fast.options import parse
from r1fast.records import Prompt
from r1fast.rewards import endpoint
from r1fast.rewards.judge import Judge, Preference, read_grade, read_vote
from r1fast.rewards.score import Score
from r1fast.scorer import Scorer, written

KEY = "sk-not-to-be-shown-5f1a"


port = pytest.fixture(scope="module")(judge_server)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def config(port: int) -> JudgeConfig:
    return JudgeConfig(
        endpoint=f"http://127.0.0.1:{port}/v1",
        model="judge-1",
        key_variable="JUDGE_KEY",
        timeout_s=15.0,
        prompt_price=2.0,
        reply_price=10.0,
    )


def question(case: str) -> Prompt:
    return Prompt(id=case, text=f"case: {case} What is it?", token_ids=(1,), kind="general")


def grade(config: JudgeConfig, case: str, text: str = "<think> so </think> An answer.") -> Score:
    return Judge(config).grade([written(question(case), text)])[0]


def seen(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as reply:
        found: dict[str, int] = json.load(reply)["seen"]
        return found


def test_grades_are_rewards(config: JudgeConfig) -> None:
    judge = Judge(config)
    scorer = Scorer({"general": {"judge": 2.0, "format": 0.0}}, model_rewards={"judge": judge.grade})
    texts = ("<think> so </think> An answer.", "<think> so </think>")
    scored = scorer.score([written(question("good"), text) for text in texts])
    assert [item.reward for item in scored] == [1.6, 0.0]
    metrics = scorer.take_metrics()
    assert (metrics["outcome/judge/ok_count"], metrics["outcome/judge/empty_count"]) == (1, 1)
    assert judge.take_metrics() == {
        "judge/questions_count": 1,
        "judge/failed_count": 0,
        "judge/cut_off_count": 0,
        "judge/calls_count": 1,
        "judge/retries_count": 0,
        "judge/prompt_tokens_count": 100,
        "judge/reply_tokens_count": 20,
        "judge/cost_count": pytest.approx(100 * 2e-6 + 20 * 10e-6),
    }
    assert set(judge.take_metrics().values()) == {0}


@pytest.mark.parametrize("case", ["silent", "twice", "early", "excess"])
def test_only_a_closing_grade_counts(config: JudgeConfig, case: str) -> None:
    assert grade(config, case) == Score(0.0, "unparsed")


@pytest.mark.parametrize("case", ["broken", "strange", "closes"])
def test_what_is_no_reply_is_a_crash_after_retries(config: JudgeConfig, port: int, case: str) -> None:
    before = seen(port).get(case, 0)
    assert grade(replace(config, retries=2), case) == Score(0.0, "crash")
    assert seen(port)[case] - before == 3


@pytest.mark.parametrize(("case", "status"), [("forbidden", "401"), ("redirects", "307")])
def test_a_refusal_is_not_repeated(
    config: JudgeConfig, port: int, case: str, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge = Judge(config)
    assert judge.grade([written(question(case), "An answer.")]) == [Score(0.0, "crash")]
    assert seen(port)[case] == 1
    assert status in judge.last_error and KEY not in judge.last_error
    assert [record.getMessage() for record in caplog.records] == [f"the judge did not reply: {judge.last_error}"]


def test_a_busy_server_is_asked_again(config: JudgeConfig) -> None:
    judge = Judge(config)
    scores = judge.grade([written(question(case), "An answer.") for case in ("busy", "flaky")])
    assert scores == [Score(0.8, "ok"), Score(0.8, "ok")]
    assert judge.take_metrics()["judge/retries_count"] == 3


@pytest.mark.parametrize("case", ["slow", "drips"])
def test_a_slow_reply_is_a_timeout(config: JudgeConfig, case: str) -> None:
    start = time.monotonic()
    assert grade(replace(config, timeout_s=0.5, retries=0), case) == Score(0.0, "timeout")
    assert time.monotonic() - start < 5.0


def test_a_batch_has_a_clock_of_its_own(config: JudgeConfig) -> None:
    start = time.monotonic()
    judge = Judge(replace(config, timeout_s=1.0, total_timeout_s=1.5, retries=50, concurrency=2))
    scores = judge.grade([written(question("slow"), "An answer.")] * 6)
    assert scores == [Score(0.0, "timeout")] * 6
    assert time.monotonic() - start < 8.0


def test_every_answer_is_a_sign_of_progress(config: JudgeConfig) -> None:
    beats: list[str] = []
    Judge(config, beats.append).grade([written(question("good"), f"Answer {number}.") for number in range(5)])
    assert len(beats) == 5


def test_no_server_is_a_crash() -> None:
    config = JudgeConfig(endpoint="http://127.0.0.1:1/v1", model="judge-1", retries=1)
    assert grade(config, "good") == Score(0.0, "crash")


def test_votes_are_half_swapped(config: JudgeConfig) -> None:
    judge = Judge(config)
    prompts = [question(case) for case in ("fair", "fair", "biased", "shy", "forbidden", "close")]
    one, other = "this is better", "this is not"
    first = [one, other, one, one, one, other]
    second = [other, one, other, other, other, one]
    fair, reverse, biased, shy, forbidden, close = judge.prefer(prompts, first, second)
    assert fair == Preference(2.0, (2, 2, 2, 2), "ok")
    assert reverse == Preference(-2.0, (-2, -2, -2, -2), "ok")
    assert biased == Preference(0.0, (2, -2, 2, -2), "ok"), "a judge of positions decides nothing"
    assert (shy.outcome, forbidden.outcome) == ("unparsed", "crash")
    assert close.margin == -1.0
    pairs = judge.preference_pairs(prompts, first, second)
    assert [(pair.prompt.id, pair.chosen, pair.rejected) for pair in pairs] == [("fair", one, other)] * 2


def test_the_key_is_sent_and_never_said(config: JudgeConfig, port: int) -> None:
    judge = Judge(config)
    judge.grade([written(question("good"), "An answer.")])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as reply:
        assert f"Bearer {KEY}" in json.load(reply)["keys"]
    assert KEY not in repr(vars(judge)) and KEY not in repr(config)


def test_templates_from_files(config: JudgeConfig, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("case: best $$5 for $response to $question")
    assert grade(replace(config, prompt=str(file)), "anything") == Score(1.0, "ok")
    for text in ("$question", "$question $response $other", "$question $response $ 5"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"holds \$question, \$response"):
            Judge(replace(config, prompt=str(file)))
    with pytest.raises(ConfigError, match="cannot read"):
        Judge(replace(config, prompt=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": ""}, "needs both"),
        ({"model": ""}, "needs both"),
        ({"endpoint": "localhost:8000"}, "must be like"),
        ({"endpoint": "http://me:secret@host/v1"}, "must be like"),
        ({"key_variable": "NO_SUCH_KEY"}, "no such variable"),
    ],
)
def test_what_cannot_work_is_refused(config: JudgeConfig, change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Judge(replace(config, **change))  # type: ignore[arg-type]


def test_a_recipe_with_the_reward_needs_the_section() -> None:
    weigh = ["--recipe", "tiny", "--rewards.general.judge", "1.0"]
    with pytest.raises(ConfigError, match="needs both"):
        parse(weigh)
    here = ["--judge.endpoint", "http://localhost:8000/v1", "--judge.model", "m"]
    with pytest.raises(ConfigError, match="must be even"):
        parse([*weigh, *here, "--judge.votes", "3"])
    assert parse([*weigh, *here]).config.judge.model == "m"


def test_verdicts() -> None:
    assert read_grade("so <score> 7.5 </score>\n") == 0.75
    assert [read_grade(text) for text in ("7", "<score>-1</score>", "<score>x</score>", "")] == [None] * 4
    assert (read_vote("[[A=B]]"), read_vote("[[B>>A]] "), read_vote("[[A>B]] or [[B>A]]")) == (0, -2, None)
