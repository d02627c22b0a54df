"""Recipes and the command line become a `Config`; a `Config` becomes config.toml and the text of `--help`.

Later wins: defaults, the recipe that `extends` names, the recipe, `--SECTION.KEY`, `--stages.STAGE.KEY`. A section's
option on the command line also replaces what the recipe says for single stages: `--rl.lr` reaches every RL stage.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from r1fast.checks import check_config
from r1fast.config import STAGES, Config, ConfigError
from r1fast.distributed_config import DistributedConfig
from r1fast.schema import KEYS, SECTION_TYPES, Key, check, find_key, read_text, unknown

RECIPES_DIR = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "tiny"
USAGE = """\
usage: torchrun [...] -m r1fast.train [--recipe NAME|FILE.toml] [--run DIR] [--dry-run] [--model PATH] [--data FILE]
                                      [--rewards FILE.py:NAME]
                                      [--SECTION.KEY VALUE ...]"""
# Options that a run may go on with other values of: what they change is what it leaves behind, how it talks, and who
# computes what, not what is computed (but for rounding).
FREE_KEYS = {
    *(f"run.{name}" for name in ("name", "dir", "samples_per_step", "log_every_steps", "save_every_steps")),
    *(f"run.{name}" for name in ("tensorboard", "async_save", "keep_states", "keep_best")),
    *(f"faults.{name}" for name in ("loading_s", "rollout_s", "reward_s", "training_s", "save_s", "evaluation_s")),
    *(f"faults.{name}" for name in ("slow_s", "max_skips")),
    *(f"distributed.{field.name}" for field in fields(DistributedConfig)),
    "rollout.tensor_parallel",
}

TABLES = ("gym_tasks", "fields", "files")  # keys whose values are tables, with names of the user's own

Flat = dict[str, Any]  # canonical dotted path -> value


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """A command line, understood. With `wants_help` the other fields are those of the default recipe."""

    config: Config
    recipe: str
    dry_run: bool = False
    wants_help: bool = False


def parse(argv: Sequence[str]) -> Invocation:
    """The command line (without the program's name).

    Raises:
        ConfigError: unknown option or recipe, wrong value, options that do not fit together.
    """
    words, flags = _split(argv)
    if "help" in flags:
        return Invocation(config=Config(), recipe=DEFAULT_RECIPE, wants_help=True)
    recipe = words.pop("recipe", DEFAULT_RECIPE)
    flat = read_recipe(recipe)
    if "data" in words:
        flat["data.source"] = "file"
    short = {"run": "run.dir", "model": "model.path", "data": "data.file", "rewards": "scoring.custom"}
    texts = {short.get(name, name): text for name, text in words.items()}
    keys: dict[str, tuple[Key, str]] = {}
    for name, text in texts.items():
        key = find_key(name)
        if key.path in keys:
            raise ConfigError(f"--{name} and another form of it set the same option, {key.path}; keep one")
        keys[key.path] = (key, text)
    for path in sorted(keys, key=lambda path: path.startswith("stages.")):  # stages last: the narrower option wins
        key, text = keys[path]
        for stage in STAGES:
            flat.pop(f"stages.{stage}.{path}", None)
        flat[path] = check(key, read_text(key, text))
    run_name = flat.get("run.name") or Path(recipe).name.removesuffix(".toml")  # qwen2.5-7b is a name, too
    flat |= {"run.name": run_name, "run.dir": flat.get("run.dir") or f"runs/{run_name}"}
    return Invocation(config=build(flat), recipe=recipe, dry_run="dry-run" in flags)


def _split(argv: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    words: dict[str, str] = {}
    flags: set[str] = set()
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word in ("-h", "--help", "--dry-run"):
            flags.add("help" if word == "-h" else name)
            continue
        if not word.startswith("--") or not name:
            raise ConfigError(f"{word!r} is not an option; options are --SECTION.KEY VALUE, see --help")
        if name not in ("recipe", "run", "model", "data", "rewards") and "." not in name:
            known = [f"--{key.path}" for keys in KEYS.values() for key in keys.values()]
            first = [path for path in known if path.endswith(f".{name}")]
            raise unknown(
                f"--{name}",
                ["--recipe", "--run", "--dry-run", "--model", "--data", "--rewards", "--help", *known],
                first,
            )
        text = value if equals else next(rest, None)
        if text is None or (not equals and text.startswith("--")):
            raise ConfigError(f"--{name} needs a value: --{name} VALUE")
        if name in words:
            raise ConfigError(f"--{name} is given twice: {words[name]!r} and {text!r}; keep one")
        words[name] = text
    return words, flags


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))


def read_recipe(name: str, *, seen: tuple[Path, ...] = ()) -> Flat:
    """The values of a recipe, those of the recipes it extends included, by canonical path, each checked.

    `name` is the name of a recipe of the package or a path that ends in .toml.

    Raises:
        ConfigError: no such recipe, bad TOML, unknown key, bad value, or recipes that extend each other.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES_DIR / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(recipe_names())
        raise ConfigError(f"recipe {name!r} does not exist; give one of {names}, or the path of a .toml file")
    if path.resolve() in seen:
        raise ConfigError(f"recipe {name!r} extends itself through {' -> '.join(step.stem for step in seen)}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    tables.pop("about", None)  # what the writer of a config.toml says about the run
    parent = tables.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise ConfigError(f'{path}: extends = {parent!r} must be a name or a file; for example "tiny"')
    if parent is not None and parent.endswith(".toml"):
        parent = str(path.parent / parent)
    flat = read_recipe(parent, seen=(*seen, path.resolve())) if parent is not None else {}
    try:
        return flat | _flatten(tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _flatten(tables: Mapping[str, Any]) -> Flat:
    flat: Flat = {}
    for path, value in _leaves(tables, ""):
        key = find_key(path)
        if key.path in flat:
            raise ConfigError(f"{key.path} is set twice, flat and in its table; keep one")
        flat[key.path] = check(key, value)
    return flat


def _leaves(tables: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        path = prefix + name
        if isinstance(value, Mapping) and not (prefix and name in TABLES):
            if not prefix and name not in (*SECTION_TYPES, "rewards", "stages"):
                raise unknown(f"[{name}]", [f"[{section}]" for section in (*SECTION_TYPES, "rewards", "stages")])
            yield from _leaves(value, path + ".")
        else:
            yield path, value


def build(flat: Mapping[str, Any]) -> Config:
    """The configuration of checked values by canonical path; also checks what must hold between them.

    Raises:
        ConfigError: options that do not fit together.
    """
    tables: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[name] = value
    sections = {name: kind(**tables.get(name, {})) for name, kind in SECTION_TYPES.items()}
    config = Config(**sections, rewards=tables.get("rewards", {}), stages=tables.get("stages", {}))
    check_config(config)
    return config


def read_config(path: Path) -> Config:
    """The configuration that a run wrote into its config.toml.

    Raises:
        ConfigError: as `read_recipe`.
    """
    return build(read_recipe(str(path)))


def flatten(config: Config) -> Flat:
    """Every value of a configuration by canonical path; `build` undoes it."""
    flat = {f"{name}.{key}": getattr(getattr(config, name), key) for name in SECTION_TYPES for key in KEYS[name]}
    return flat | _flatten({"rewards": config.rewards, "stages": config.stages})


def differing_keys(a: Config, b: Config) -> list[str]:
    """The options in which two runs differ, sorted; those that do not change what a run computes are left out."""
    return [path for path in _differing(a, b) if path not in FREE_KEYS]


def differing_engine(a: Config, b: Config) -> list[str]:
    """The options of [distributed], and of teams, in which two runs differ, sorted: who computes what."""
    return [path for path in _differing(a, b) if path.startswith(("distributed.", "rollout.tensor_parallel"))]


def _differing(a: Config, b: Config) -> list[str]:
    flat_a, flat_b, missing = flatten(a), flatten(b), object()
    return sorted(
        path for path in flat_a.keys() | flat_b.keys() if flat_a.get(path, missing) != flat_b.get(path, missing)
    )


def to_toml(config: Config, about: Mapping[str, str] | None = None) -> str:
    """The text of config.toml: every value, and a table `[about]` (versions, commit, command line) that is not read."""
    tables: dict[str, list[str]] = {}
    flat = {f"about.{name}": text for name, text in (about or {}).items()} | flatten(config)
    for path, value in flat.items():
        table, _, name = path.rpartition(".")
        tables.setdefault(table, []).append(f"{_toml_key(name)} = {_toml_value(value)}")
    return "\n".join(f"[{_toml_table(table)}]\n" + "\n".join(lines) + "\n" for table, lines in tables.items())


def _toml_table(path: str) -> str:
    return ".".join(_toml_key(name) for name in path.split("."))


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(name)} = {_toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def help_text() -> str:
    """What `--help` prints: usage, recipes, and every option with type, unit, default, tiny's value, source."""
    tiny = read_recipe(DEFAULT_RECIPE)
    lines = [USAGE, "", "recipes (default tiny):"]
    for name in recipe_names():
        first = (RECIPES_DIR / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        lines += textwrap.wrap(
            first.lstrip("# "), width=110, initial_indent=f"  {name:<18} ", subsequent_indent=" " * 21
        )
    lines += ["", "short forms:"]
    lines += [
        "  --run DIR          --run.dir DIR (under torchrun write --run.dir: it takes --run for its own --run-path)",
        "  --model PATH       --model.path PATH",
    ]
    lines += ["  --data FILE        --data.source file --data.file FILE"]
    lines += ["  --rewards my.py:f  --scoring.custom my.py:f, a reward of your own; then --rewards.KIND.f WEIGHT"]
    lines += ["  --dry-run          print the plan (stages, steps, tokens, memory, time) and exit", ""]
    lines += _wrap(
        "Values are TOML. A SCHEDULE is [[step, value], ...], constant from each step on, first step 0. --rl.KEY sets "
        "every RL stage, --stages.STAGE.KEY one (KEY of its section below, or SECTION.KEY); rewards are "
        "--rewards.KIND.NAME WEIGHT.",
        "",
    )
    by_section = {section: [stage for stage in STAGES if STAGES[stage] == section] for section in KEYS}
    for section, keys in KEYS.items():
        stages = ", ".join(by_section[section])
        title = (SECTION_TYPES[section].__doc__ or "").strip() + (f" Stages: {stages}." if stages else "")
        lines += ["", *_wrap(title, "")]
        for key in keys.values():
            lines += [f"  --{key.path} {key.type_name}", *_wrap(_describe(key, tiny.get(key.path)), " " * 6)]
    return "\n".join(lines) + "\n"


def _describe(key: Key, tiny: Any) -> str:
    parts = [key.help + (f" [{key.unit}]" if key.unit else ""), f"default {_toml_value(key.default)}"]
    if tiny is not None and tiny != key.default:
        parts[-1] += f", tiny {_toml_value(tiny)}"
    if key.need:
        parts.append(f"must be {key.need}")
    if key.source:
        parts.append(f"source: {key.source}")
    return "; ".join(parts)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
