"""`r1fast data check | overlap | duplicates | difficulty`: what a data set holds, before anything is trained on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from r1fast.atomic import atomic_file
from r1fast.config import ConfigError, DataConfig
from r1fast.data.difficulty import histogram
from r1fast.data.duplicates import find_duplicates
from r1fast.data.files import open_rows
from r1fast.data.overlap import Overlap, overlap_report
from r1fast.data.prompts import Prompts, open_prompts
from r1fast.data.splits import evaluation_prompts, preset_of, reading_of
from r1fast.options import parse
from r1fast.records import Prompt

BAD_INPUT = 2
SHOWN = 5  # examples that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found, write it whole to --report, and what is left to --out; 2 for files that cannot be."""
    options = _parser().parse_args(argv)
    try:
        report = COMMANDS[options.command](options)
        if options.report:
            with atomic_file(options.report) as file:
                json.dump(report, file, ensure_ascii=False, indent=1)
            print(f"report: {options.report}")
    except (ConfigError, ValueError, OSError) as error:
        print(f"r1fast data: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1fast data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "check": "read every row: kinds, languages, bad rows, repeated questions",
        "overlap": "questions that share ten words in a row with evaluation sets",
        "duplicates": "questions that are the same, or nearly",
    }
    for name, help_text in helps.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("file", help="as data.file of a recipe")
        command.add_argument("--preset", default="", help="columns of a public data set, as data.preset")
        command.add_argument("--fields", default="{}", help='columns as JSON, {"prompt": "question"}, as data.fields')
        command.add_argument("--skip", action="store_true", help="count bad rows and leave them out")
        command.add_argument("--report", type=Path, metavar="FILE", help="write what was found as JSON")
        if name != "check":
            command.add_argument("--out", type=Path, metavar="FILE", help="write the rows that are left, as JSON lines")
        if name == "overlap":
            command.add_argument("--eval", nargs="+", required=True, metavar="SET", help="files, or presets")
        if name == "duplicates":
            command.add_argument("--near", type=float, default=0.8, help="least similarity of near ones; 1: exact only")
    text = "how often the recipe's base model solves each training prompt: data.pass_rates; begun again, it goes on"
    command = commands.add_parser("difficulty", help=text, description=text)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="pass rates, as JSON lines")
    command.add_argument("--samples", type=int, default=8, help="of a prompt")
    command.add_argument("--prompts", type=int, default=0, help="of the training split, from the first; 0: all")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the histogram as JSON")
    command.add_argument("words", nargs=argparse.REMAINDER, help="-- then options as of r1fast train")
    return parser


def _open(options: argparse.Namespace) -> tuple[Prompts, dict[str, Any]]:
    try:
        fields = json.loads(options.fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"--fields {options.fields!r} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f'--fields {options.fields!r} is no table: write {{"prompt": "COLUMN"}}')
    config = DataConfig(source="file", file=options.file, preset=options.preset, fields=fields)
    file = options.file or preset_of(config).file
    prompts, found = open_prompts(file, reading_of(config), "skip" if options.skip else "error")
    print(f"{file}: {len(prompts):,} prompts, {found.num_faults:,} bad rows")
    if found.num_faults:
        print(f"  the first: {found.first_fault}")
    return prompts, {"file": file, "prompts": len(prompts), "bad_rows": found.num_faults, "first": found.first_fault}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    prompts, report = _open(options)
    counts = Counter(f"{prompt.kind}, {prompt.language}" for prompt in prompts)
    repeated = len(prompts) - len({prompt.text for prompt in prompts})
    for name, count in counts.most_common():
        print(f"  {name}: {count:,}")
    print(f"  questions that an earlier row has: {repeated:,}")
    return {**report, "kinds": counts, "repeated": repeated}


def _overlap(options: argparse.Namespace) -> dict[str, Any]:
    prompts, report = _open(options)
    overlap = Overlap()
    for name in options.eval:
        overlap.add(name, evaluation_prompts(name))
    found = overlap_report(prompts, overlap)
    for name, row in found["by_set"].items():
        print(
            f"  {name}: {row['matches']:,} prompts match {row['evaluation_prompts_met']:,} of its "
            f"{row['evaluation_prompts']:,}"
        )
    for example in found["examples"][:SHOWN]:
        print(f"  {example['id']}: {example['words']!r} is in {example['evaluation_set']} {example['evaluation_id']}")
    _write_rest(options, report["file"], prompts, found["places"])
    return {**report, **found}


def _duplicates(options: argparse.Namespace) -> dict[str, Any]:
    prompts, report = _open(options)
    found = find_duplicates(_Texts(prompts), near=options.near)
    print(f"  exact: {len(found.exact):,}, near ({options.near:g} or more): {len(found.near):,}")
    pairs = [{"id": prompts[a].id, "repeats": prompts[b].id} for a, b in {**found.exact, **found.near}.items()]
    for place, other in list(found.near.items())[:SHOWN]:
        print(f"  {prompts[place].id}: {prompts[place].text[:70]!r} is near {prompts[other].text[:70]!r}")
    _write_rest(options, report["file"], prompts, found.places)
    return {**report, "exact": len(found.exact), "near": len(found.near), "pairs": pairs}


class _Texts(Sequence[str]):
    """The questions of prompts, read when they are asked for."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> _Texts: ...
    def __getitem__(self, place: int | slice) -> str | _Texts:
        return _Texts(self._prompts[place]) if isinstance(place, slice) else self._prompts[place].text


def _write_rest(options: argparse.Namespace, name: str, prompts: Prompts, dropped: Sequence[int]) -> None:
    if not options.out:
        return
    rows, out = open_rows(name), set(dropped)
    with atomic_file(options.out) as file:
        for number, place in enumerate(prompts.places.tolist()):
            if number not in out:
                file.write(json.dumps(rows[place], ensure_ascii=False, default=str) + "\n")
    print(f"  {len(prompts) - len(out):,} rows, in their own columns: {options.out}")


def _difficulty(options: argparse.Namespace) -> dict[str, Any]:
    from r1fast.data.measure import measure_difficulty  # needs a model: torch and transformers load here

    config = parse([word for word in options.words if word != "--"]).config
    rates = measure_difficulty(config, options.out, samples=options.samples, num_prompts=options.prompts)
    print(f"{len(rates):,} prompts, {options.samples} samples each: {options.out}")
    for name, count in histogram(rates).items():
        print(f"  {name:>11} {count:>8,} {'#' * round(50 * count / max(1, len(rates)))}")
    return {"file": str(options.out), "prompts": len(rates), "histogram": histogram(rates)}


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "check": _check,
    "overlap": _overlap,
    "duplicates": _duplicates,
    "difficulty": _difficulty,
}


if __name__ == "__main__":
    sys.exit(main())
