"""Prompts from reasoning-gym: any of its task names with its parameters, scored by its own scorers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from r1fast.config import DataConfig
from r1fast.records import Prompt
from r1fast.source import Split

LANGUAGES = "languages"  # of a task's arguments: language -> {phrase of the English question: the same in it}
# A small task space (one-digit sums) repeats itself: give up after this many draws for every prompt wanted.
_MAX_DRAWS = 20


def gym_prompts(config: DataConfig) -> dict[Split, list[Prompt]]:
    """The splits: `num_*` distinct questions in equal parts over data.gym_tasks, disjoint by question.

    The held-out set is drawn first, then `dev`, then training prompts, which may become fewer than asked for where
    the task has no more; the evaluation sets may not.
    """
    if not config.gym_tasks:
        raise ValueError("data.source = 'gym' needs tasks: [data.gym_tasks.chain_sum] with the task's arguments")
    if config.num_train < 1:
        raise ValueError("data.num_train = 0: a generated source has no end; give a number of training prompts")
    counts: dict[Split, int] = {"held_out": config.num_held_out, "dev": config.num_dev, "train": config.num_train}
    splits: dict[Split, list[Prompt]] = {}
    seen: set[str] = set()
    names = list(config.gym_tasks)
    for split, count in counts.items():
        per_task = []
        for number, name in enumerate(names):
            share = count // len(names) + (number < count % len(names))
            first_seed = _first_seed(f"{config.seed} {split} {name}")
            drawn = _draw(name, config.gym_tasks[name], first_seed, share, seen, config.language)
            if len(drawn) < share and split != "train":
                raise ValueError(
                    f"data.gym_tasks.{name}: only {len(drawn)} distinct {split} questions of {share} wanted; "
                    f"widen the task's arguments or lower data.num_{split}"
                )
            per_task.append(drawn)
        longest = max((len(drawn) for drawn in per_task), default=0)
        splits[split] = [drawn[i] for i in range(longest) for drawn in per_task if i < len(drawn)]
    return splits


def _draw(
    name: str, arguments: Mapping[str, Any], first_seed: int, count: int, seen: set[str], language: str
) -> list[Prompt]:
    """`count` entries whose questions are not in `seen`, which grows."""
    if not count:
        return []
    arguments, wordings = _wordings(name, arguments, "en" if language == "auto" else language)
    dataset = _dataset(name, {**arguments, "seed": first_seed, "size": count * _MAX_DRAWS})
    prompts: list[Prompt] = []
    for index in range(count * _MAX_DRAWS):
        entry = dataset[index]
        question = str(entry["question"])
        if question in seen:
            continue
        seen.add(question)
        spoken, phrases = wordings[len(prompts) % len(wordings)]
        prompts.append(
            Prompt(
                id=f"{name}-{first_seed + index}",
                text=_in_words(name, question, spoken, phrases),
                token_ids=(),
                kind="gym",
                language=spoken,
                answer="" if entry["answer"] is None else str(entry["answer"]),
                metadata={
                    "gym_dataset": name,
                    "gym_config": json.dumps(arguments, sort_keys=True),
                    "gym_entry": json.dumps(entry, default=str),
                },
            )
        )
        if len(prompts) == count:
            break
    return prompts


Wording = tuple[str, Mapping[str, str]]  # a language, and what the English phrases are called in it


def _wordings(name: str, arguments: Mapping[str, Any], own: str) -> tuple[dict[str, Any], list[Wording]]:
    """The task's own arguments, and the languages in which its questions are asked in turn, reasoning-gym's first."""
    rest = {key: value for key, value in arguments.items() if key != LANGUAGES}
    wordings: list[Wording] = [(own, {})]
    further = arguments.get(LANGUAGES, {})
    if not isinstance(further, Mapping):
        raise ValueError(
            f"data.gym_tasks.{name}.{LANGUAGES} = {further!r} must be a table: [data.gym_tasks.{name}.{LANGUAGES}.es] "
            "with the task's phrases in it"
        )
    for language, phrases in further.items():
        is_table = isinstance(phrases, Mapping) and all(isinstance(text, str) for text in phrases.values())
        if not is_table or not phrases:
            raise ValueError(
                f"data.gym_tasks.{name}.{LANGUAGES}.{language} = {phrases!r} must be a table of phrases: "
                '"phrase of the English question" = "the same in this language"'
            )
        wordings.append((language, phrases))
    return rest, wordings


def _in_words(name: str, question: str, language: str, phrases: Mapping[str, str]) -> str:
    """The question with its phrases in another language. Raises ValueError where it has none of them."""
    if phrases and not any(phrase in question for phrase in phrases):
        raise ValueError(
            f"data.gym_tasks.{name}.{LANGUAGES}.{language}: the question {question!r} has none of the phrases "
            f"{list(phrases)}; give one for every way in which the task asks"
        )
    for phrase, text in phrases.items():
        question = question.replace(phrase, text)
    return question


def _first_seed(key: str) -> int:
    """A 31-bit seed (numpy's limit is 32). reasoning-gym seeds entry i with seed + i: neighbours must be far apart."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1


def _dataset(name: str, arguments: Mapping[str, Any]) -> Any:
    import reasoning_gym  # half a second and 60 MB, for runs that use it only
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = [known for known in sorted(DATASETS) if known.split("_")[0] in name or name in known]
        hint = ", ".join(near[:5]) or "see reasoning-gym's gallery"
        raise ValueError(f"data.gym_tasks.{name}: reasoning-gym has no such task; near: {hint}")
    try:
        return reasoning_gym.create_dataset(name, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        given = {key: value for key, value in arguments.items() if key not in ("seed", "size")}
        raise ValueError(f"data.gym_tasks.{name}: reasoning-gym refuses {given}: {error}") from error
