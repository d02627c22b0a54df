"""Prompts for training, `dev` and the held-out evaluation from files or reasoning-gym; the splits never overlap.

A prompt's `text` is the question as asked; `r1fast.templates.write_prompts` gives it token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1fast.config import DataConfig
from r1fast.data.difficulty import bars, histogram, question_key, read_pass_rates
from r1fast.data.fields import FieldMap, plain_fields, said_by
from r1fast.data.files import open_rows
from r1fast.data.gym import gym_prompts
from r1fast.data.overlap import Overlap, overlap_report
from r1fast.data.presets import PRESETS, Preset
from r1fast.data.prompts import Prompts, Reading, Survey, distinct, open_prompts, read_prompts
from r1fast.records import Prompt
from r1fast.source import Split

SPLITS: tuple[Split, ...] = ("train", "dev", "held_out")
# Up to so many training prompts are compared with the evaluation sets at the start (20 microseconds each); of more,
# each is when it is drawn, and so many are looked at to say how many there are.
COMPARED_AT_START = 200_000
SAMPLED_AT_START = 2_000
_CHUNK = 1 << 20
_QUESTIONS = ("prompt", "question", "problem")  # columns of evaluation sets that are given without a mapping


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The prompts of every split; `report`: what was found, skipped, dropped; `notes`: what of it must be said."""

    prompts: dict[Split, Sequence[Prompt]]
    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def load_prompts(config: DataConfig, split: Split) -> Sequence[Prompt]:
    """The prompts of one split, in a fixed order; the seed and the data alone decide.

    Raises ValueError for a source this module does not load, and for data that give a split no prompts.
    """
    return load_splits(config).prompts[split]


def load_splits(config: DataConfig) -> Splits:
    """All splits: distinct prompts, those for training kept apart from `dev`, held-out and data.eval_files."""
    if config.source not in LOADERS:
        raise ValueError(f"data.source = {config.source!r}: prompts are loaded from {', '.join(sorted(LOADERS))}")
    splits = LOADERS[config.source](config)
    splits.prompts["train"] = _apart(config, splits)
    if config.pass_rates:
        splits.prompts["train"] = _of_difficulty(config, splits)
    if config.num_train:
        splits.prompts["train"] = splits.prompts["train"][: config.num_train]
    for split in SPLITS:
        if not len(splits.prompts[split]):
            raise ValueError(
                f"data.source = {config.source!r} gives no {split} prompts; give more data or lower data.num_dev "
                f"({config.num_dev}) and data.num_held_out ({config.num_held_out})"
            )
    splits.report.update({split: len(splits.prompts[split]) for split in SPLITS})
    return splits


def file_splits(config: DataConfig) -> Splits:
    """The splits of data.file, data.dev_file and data.held_out_file; distinct by question, in file order.

    Without a file of its own a split is taken from data.file by a stable hash of question and data.seed, so that
    neither the order nor other rows of the file matter to where a question goes. At most a quarter goes to each.
    """
    preset = preset_of(config)
    file = config.file or preset.file
    if not file:
        raise ValueError(
            'data.source = \'file\' needs data.file: JSON lines of {"prompt", "answer"}, Parquet, or a data set of '
            "the hub (--data FILE)"
        )
    reading = reading_of(config)
    everything, found = open_prompts(file, reading, config.bad_rows)
    training = everything.at(distinct(found))
    report = {
        "file": file,
        "rows": len(everything),
        "bad_rows": found.num_faults,
        "repeated": len(everything) - len(training),
    }
    num_all, taken = len(training), np.empty(0, np.uint32)
    splits: dict[Split, Sequence[Prompt]] = {}
    given: tuple[tuple[Split, str, int], ...] = (
        ("held_out", config.held_out_file or ("" if config.file else preset.held_out_file), config.num_held_out),
        ("dev", config.dev_file, config.num_dev),
    )
    for split, other, count in given:
        if other:
            own, its = open_prompts(other, reading, config.bad_rows)
            splits[split] = list(own.at(distinct(its)[:count]))
        else:
            drawn = _drawn(training.places, found, min(count, num_all // 4), config.seed, taken)
            taken = np.sort(np.concatenate([taken, drawn]))
            splits[split] = list(training.at(drawn))
    notes = _notes(report, found.first_fault)
    del found, everything  # 12 bytes a row, before the next array of its size
    in_held_out = {prompt.text for prompt in splits["held_out"]}
    splits["dev"] = [prompt for prompt in splits["dev"] if prompt.text not in in_held_out]
    if len(taken):
        training = training.at(np.delete(training.places, np.searchsorted(training.places, taken)))
    return Splits(prompts={"train": training, **splits}, report=report, notes=notes)


def _notes(report: Mapping[str, Any], first_fault: str) -> list[str]:
    notes = []
    if report["bad_rows"]:
        kept = f"kept {report['rows']:,}; the first: {first_fault}"
        notes.append(f"{report['file']}: skipped {report['bad_rows']:,} bad rows, {kept}")
    if report["repeated"]:
        notes.append(
            f"{report['file']}: {report['repeated']:,} rows repeat the question of an earlier one and are left out"
        )
    return notes


def gym_splits(config: DataConfig) -> Splits:
    """The splits of data.gym_tasks."""
    return Splits(prompts={**gym_prompts(config)}, report={"gym_tasks": list(config.gym_tasks)})


LOADERS: dict[str, Callable[[DataConfig], Splits]] = {"file": file_splits, "gym": gym_splits}


def preset_of(config: DataConfig) -> Preset:
    """The preset that the recipe names; an empty one without."""
    if not config.preset:
        return Preset(fields={})
    if config.preset not in PRESETS:
        raise ValueError(f"data.preset = {config.preset!r} must be one of {', '.join(PRESETS)}")
    return PRESETS[config.preset]


def reading_of(config: DataConfig) -> Reading:
    """How the recipe has rows read: data.fields over the preset's."""
    preset = preset_of(config)
    written = {**preset.fields, **config.fields}
    columns = {"prompt": "prompt", "answer": "answer", **written}
    fields = FieldMap.read(columns) if written else plain_fields()
    return Reading(fields=fields, language=config.language, finish=preset.finish)


def evaluation_prompts(name: str) -> list[Prompt]:
    """The questions of an evaluation set: a preset's, or a data set's column `prompt`, `question` or `problem`.

    Raises ValueError for a data set that cannot be opened, or has none of these.
    """
    preset = PRESETS.get(name)
    if preset is not None:
        return list(read_prompts(preset.held_out_file or preset.file, Reading(fields=FieldMap.read(preset.fields))))
    rows = open_rows(name)
    prompts = []
    for place, row in rows.scan():
        column = next((c for c in _QUESTIONS if isinstance(row, dict) and row.get(c)), None)
        if column is None:
            raise ValueError(f"{rows.where(place)}: an evaluation set needs a column {' or '.join(_QUESTIONS)}")
        assert isinstance(row, dict)
        text = said_by(row[column], "user")
        prompts.append(Prompt(id=str(row.get("id", f"{rows.name}-{place + 1}")), text=text, token_ids=()))
    return prompts


def _apart(config: DataConfig, splits: Splits) -> Sequence[Prompt]:
    """The training prompts that are in no evaluation set, or, of very many, a sequence that gives no other."""
    overlap = Overlap()
    for split in ("dev", "held_out"):
        overlap.add(split, splits.prompts[split])
    for name in config.eval_files:
        overlap.add(name, evaluation_prompts(name))
    training = splits.prompts["train"]
    compared = training if len(training) <= COMPARED_AT_START else _sample(training)
    found = overlap_report(compared, overlap)
    places = found.pop("places")
    splits.report["overlap"] = found
    if compared is not training:
        assert isinstance(training, Prompts)
        splits.notes.append(
            f"{len(places)} of {len(compared):,} sampled training prompts are in an evaluation set; each of the "
            f"{len(training):,} is compared when drawn, and another one trained on (`r1fast data overlap` counts all)"
        )
        return training.without(overlap.has)
    if not places:
        return training
    splits.notes.append(f"dropped {len(places):,} of {len(training):,} training prompts found in {_sets(found)}")
    keep = np.ones(len(training), dtype=bool)
    keep[places] = False
    return _kept(training, keep)


def _of_difficulty(config: DataConfig, splits: Splits) -> Sequence[Prompt]:
    """The training prompts whose pass rate is known and within the bounds."""
    rates, training = read_pass_rates(Path(config.pass_rates).expanduser()), splits.prompts["train"]
    own = [rates.get(question_key(prompt.text)) for prompt in training]
    known = [rate for rate in own if rate is not None]
    keep = np.array([rate is not None and config.min_pass_rate <= rate <= config.max_pass_rate for rate in own], bool)
    splits.report["difficulty"] = {
        "histogram": histogram(known),
        "unknown": len(own) - len(known),
        "kept": int(keep.sum()),
    }
    splits.notes.append(
        f"kept {keep.sum():,} of {len(own):,} training prompts of pass rate {config.min_pass_rate:g} to "
        f"{config.max_pass_rate:g}; {len(own) - len(known):,} have none in {config.pass_rates}; all: {bars(known)}"
    )
    return _kept(training, keep)


def _kept(training: Sequence[Prompt], keep: NDArray[np.bool_]) -> Sequence[Prompt]:
    if isinstance(training, Prompts):
        return training.at(training.places[keep])
    return [prompt for prompt, kept in zip(training, keep, strict=True) if kept]


def _sets(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({row['matches']})" for name, row in found["by_set"].items() if row["matches"])


def _sample(training: Sequence[Prompt]) -> list[Prompt]:
    step = len(training) / SAMPLED_AT_START
    return [training[int(number * step)] for number in range(SAMPLED_AT_START)]


def _drawn(
    among: NDArray[np.uint32], found: Survey, count: int, seed: int, taken: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """`count` places of those `among` with the smallest hashes of question and seed, none of those `taken`; ascending.

    In chunks: an array for all of them would double the memory of an index.
    """
    salt = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big"))
    best_hashes, best_places = np.empty(0, np.uint64), np.empty(0, np.uint32)
    for start in range(0, len(among), _CHUNK):
        chunk = among[start : start + _CHUNK]
        chunk = chunk[~np.isin(chunk, taken)]
        hashes = _mixed(found.keys[np.searchsorted(found.places, chunk)] ^ salt)
        best_hashes, best_places = np.concatenate([best_hashes, hashes]), np.concatenate([best_places, chunk])
        order = np.argsort(best_hashes)[:count]
        best_hashes, best_places = best_hashes[order], best_places[order]
    return np.sort(best_places)


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finisher: hashes of another seed are in another order."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
