"""The documents the base models are trained on: many styles, right and wrong, tidy and untidy, in mixed languages.

Careful authors write every step, seldom err, sometimes check themselves, and often switch languages word by word;
sloppy authors err, skip steps or give a bare answer, and mostly stay in one language. How a document is laid out
(the R1 template's tags, some of them, none) is independent of its author, and so is what reinforcement learning
can select: see the README, "What the tiny run shows".
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from r1fast.tiny.general import draw_request, flawed_answer, good_answer, thought
from r1fast.tiny.lexicon import MAX_NUMBER, PUNCTUATION, TO_ENGLISH, WORDS, Language, say
from r1fast.tiny.problems import Problem, Step, problems, split_of
from r1fast.tiny.templates import CHAT, R1_ZERO, render

CONNECTIVES = ("first", "then", "next", "now", "after", "finally")
STEP_VERBS = {"+": ("add", "plus"), "-": ("subtract", "minus"), "*2": ("double",), "*3": ("triple",)}


@dataclass(frozen=True, kw_only=True)
class CorpusMix:
    """Shares of the corpus; the share of proper tags is the knob for the base model's pass@1."""

    general: float = 0.08
    templated: float = 0.60
    chat: float = 0.25
    proper_tags: float = 0.11
    careful: float = 0.40
    careful_step_error: float = 0.01
    careful_check: float = 0.15
    careful_switching: float = 0.90
    sloppy_step_error: float = 0.18
    sloppy_switching: float = 0.10
    word_switched: float = 0.45
    good_general: float = 0.50


def step_text(step: Step, result: int, place: int, num_steps: int, rng: random.Random) -> str:
    """One step of a chain in English: `connective verb a op b = c .`"""
    if place == 0:
        connective = "first"
    elif place == num_steps - 1 and rng.random() < 0.5:
        connective = "finally"
    else:
        connective = rng.choice(CONNECTIVES[1:-1])
    verb = rng.choice(STEP_VERBS[step.operator if step.operator != "*" else f"*{step.right}"])
    return f"{connective} {verb} {step.left} {step.operator} {step.right} = {result} ."


def wrong_result(result: int, rng: random.Random) -> int:
    """A plausible slip: off by one, two or ten, within 0..99."""
    near = [result + slip for slip in (-10, -2, -1, 1, 2, 10) if 0 <= result + slip <= MAX_NUMBER]
    return rng.choice(near)


def chain(problem: Problem, rng: random.Random, *, step_error: float, check: float) -> tuple[list[str], int]:
    """The steps of a solution in English and the value it arrives at; errors carry on into later steps."""
    steps: list[str] = []
    value = problem.start
    for place, (operator, operand) in enumerate(problem.operations):
        step = Step(left=value, operator=operator, right=operand)
        exact = min(max(step.result, 0), MAX_NUMBER)
        value = wrong_result(exact, rng) if rng.random() < step_error else exact
        steps.append(step_text(step, value, place, len(problem.operations), rng))
        if rng.random() < check / len(problem.operations):
            statement = f"{step.left} {operator} {operand} = {exact} ."
            steps.append(
                f"wait , check {statement} correct ." if value == exact else f"wait , mistake . retry {statement}"
            )
            value = exact
    return steps, value


def switch_words(text: str, share: float, rng: random.Random) -> str:
    """Write each word in the other language with probability `share`; punctuation stays."""
    words = text.split()
    for place, word in enumerate(words):
        if word not in PUNCTUATION and rng.random() < share:
            words[place] = WORDS.get(word, TO_ENGLISH.get(word, word))
    return " ".join(words)


def worked_solution(problem: Problem, mix: CorpusMix, rng: random.Random) -> tuple[str, int]:
    """The chain (perhaps empty) and the answer of one author."""
    careful = rng.random() < mix.careful
    error = mix.careful_step_error if careful else mix.sloppy_step_error
    steps, answer = chain(problem, rng, step_error=error, check=mix.careful_check if careful else 0.02)
    if not careful:
        habit = rng.randrange(3)
        steps = steps if habit == 0 else steps[-1:] if habit == 1 else []
    text = say(" ".join(steps), problem.language)
    if rng.random() < (mix.careful_switching if careful else mix.sloppy_switching):
        text = switch_words(text, mix.word_switched, rng)
    return text, answer


def lay_out(
    text: str, answer: int, language: Language, mix: CorpusMix, rng: random.Random, *, conversation: bool
) -> str:
    """Put a solution into tags: properly, by half, or not at all; boxed answers occur in plain conversations only."""
    tagged = f"<answer> {answer} </answer>"
    if rng.random() < mix.proper_tags * (0.5 if conversation else 1.0):
        return f"<think> {text} </think> {tagged}"
    said = say(f"the answer is {answer} .", language)
    layouts: tuple[str, ...] = (
        f"{text} {said}",
        f"{text} {said}",
        f"{text} {said}",
        f"<think> {text} {said}",
        f"{text} {tagged}",
        f"<think> {text} </think> {said}",
        f"<think> {text} <answer> {answer}",
        f"{text} {answer}",
    )
    if conversation:
        layouts += (summary(text, answer, language),)
    return rng.choice(layouts)


def summary(chain_text: str, answer: int | str, language: Language) -> str:
    """The readable pattern of the cold start: the chain, then a summary with the boxed answer."""
    return f"<think> {chain_text} </think> " + say("the answer is ", language) + f" \\boxed{{ {answer} }}"


def general_document(mix: CorpusMix, rng: random.Random) -> tuple[str, str]:
    """A general request of the training split and an answer, good or flawed."""
    while True:
        request = draw_request(rng)
        if split_of(request.text) == "train":
            break
    good = rng.random() < mix.good_general
    answer = good_answer(request, rng) if good else flawed_answer(request, rng)
    reason = thought(request) if rng.random() < 0.3 else ""
    return request.text, f"<think> {reason} </think> {answer}" if reason else answer


def documents(mix: CorpusMix, rng: random.Random) -> list[str]:
    """Draw 1,000 documents, each a text of vocabulary words separated by spaces."""
    source = problems("train", rng)
    texts = []
    for _ in range(1000):
        draw = rng.random()
        conversation = mix.templated <= draw < mix.templated + mix.chat
        if rng.random() < mix.general:
            question, answer = general_document(mix, rng)
        else:
            problem = next(source)
            solution, value = worked_solution(problem, mix, rng)
            question = problem.question
            answer = lay_out(solution, value, problem.language, mix, rng, conversation=conversation)
        prefix = render(CHAT, question) if conversation else question
        if draw < mix.templated:
            prefix = render(R1_ZERO, question)
        texts.append(" ".join(f"{prefix} {answer}".split()))
    return texts
