"""The keys of the configuration by dotted path: type, constraint and default; and a value checked against its key.

Paths are `SECTION.KEY`, `rewards.KIND.NAME`, and either behind `stages.STAGE.`; a stage's flat key is short for its
main section, so `stages.rl_1.lr` is `stages.rl_1.rl.lr`.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from r1fast.config import STAGES, Config, ConfigError, FieldTexts, FileWeights, GymTasks
from r1fast.schedule import IntSchedule, Schedule, check_pieces, values

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One option: `path` as the user writes it, canonical; `hint` its type; `need` its constraint."""

    path: str
    hint: Any
    default: Any
    help: str
    unit: str
    need: str
    source: str

    @property
    def type_name(self) -> str:
        """The type in the words of `--help`."""
        if get_origin(self.hint) is Literal:
            return "|".join(get_args(self.hint))
        if self.hint in (GymTasks, FieldTexts, FileWeights):
            return "TABLE"
        names: dict[Any, str] = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", tuple[str, ...]: "LIST"}
        names |= {IntSchedule: "INT|SCHEDULE", Schedule: "NUMBER|SCHEDULE"}
        return names[self.hint]


def _section_keys(section: str, kind: type) -> Mapping[str, Key]:
    hints = get_type_hints(kind)
    keys = {}
    for field in fields(kind):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        path = f"{section}.{field.name}"
        keys[field.name] = Key(path=path, hint=hints[field.name], default=default, **field.metadata)
    return MappingProxyType(keys)


# Section -> the dataclass behind it; `rewards` and `stages` are tables of the user's own keys.
SECTION_TYPES: Mapping[str, type] = MappingProxyType(
    {name: hint for name, hint in get_type_hints(Config).items() if isinstance(hint, type)}
)
KEYS: Mapping[str, Mapping[str, Key]] = MappingProxyType(
    {section: _section_keys(section, kind) for section, kind in SECTION_TYPES.items()}
)


def find_key(path: str) -> Key:
    """The key that `path` names, with its canonical path.

    Raises:
        ConfigError: nothing has that name; the message says what does.
    """
    parts = path.split(".")
    if parts[0] == "stages":
        return _find_stage_key(path, parts)
    if parts[0] == "rewards":
        if len(parts) != 3:
            raise ConfigError(f"{path}: rewards have a kind and a name; write rewards.math.accuracy")
        return Key(path=path, hint=Schedule, default=0.0, help="weight", unit="", need="", source="")
    if len(parts) == 2 and parts[1] in KEYS.get(parts[0], {}):
        return KEYS[parts[0]][parts[1]]
    known = [key.path for keys in KEYS.values() for key in keys.values()]
    if parts[0] in KEYS and len(parts) == 2:  # the section is right: look there first
        inside = difflib.get_close_matches(parts[1], list(KEYS[parts[0]]), n=3)
        elsewhere = [key for key in known if key.split(".")[1] == parts[1]]
        raise unknown(path, known, [f"{parts[0]}.{name}" for name in inside] + elsewhere)
    raise unknown(path, [*known, *KEYS], [key for key in known if key.split(".")[1] == parts[-1]])


def _find_stage_key(path: str, parts: list[str]) -> Key:
    if len(parts) < 3:
        raise ConfigError(f"{path}: write stages.STAGE.KEY, for example stages.rl_1.lr")
    stage, rest = parts[1], parts[2:]
    if stage not in STAGES:
        raise unknown(f"stages.{stage}", [f"stages.{name}" for name in STAGES])
    main = STAGES[stage]
    if rest[0] in ("run", "pipeline", "model", "data", "general", "faults", "stages"):
        raise ConfigError(f"{path}: [{rest[0]}] belongs to the whole run; set it outside [stages]")
    if len(rest) == 1:
        if rest[0] not in KEYS[main]:
            others = [f"stages.{stage}.{section}.{rest[0]}" for section, keys in KEYS.items() if rest[0] in keys]
            raise unknown(path, [f"stages.{stage}.{name}" for name in KEYS[main]], others)
        rest = [main, *rest]
    try:
        key = find_key(".".join(rest))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Key(**{**vars(key), "path": f"stages.{stage}.{key.path}"})


def unknown(name: str, known: Iterable[str], first: Iterable[str] = ()) -> ConfigError:
    """The error for a name that does not exist, with near matches: `first` ones before those that are spelt alike."""
    near = list(dict.fromkeys([*first, *difflib.get_close_matches(name, list(known), n=3)]))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists every key"
    return ConfigError(f"unknown key {name}: {hint}")


def read_text(key: Key, text: str) -> Any:
    """A command-line word as a value for `check`: a TOML literal, or the text itself where that is none."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if key.hint == tuple[str, ...]:
            return [word.strip() for word in text.split(",") if word.strip()]
        is_number = key.hint in (int, float, IntSchedule, Schedule) and re.fullmatch(r"-?\.\d+|-?\d+\.", text)
        return float(text) if is_number else text  # .5 and 5. are no TOML
    wants_text = key.hint is str or get_origin(key.hint) is Literal
    return text if wants_text and not isinstance(value, str) else value


def check(key: Key, value: Any) -> Any:
    """`value` (from TOML) as the key's type, schedules as tuples.

    Raises:
        ConfigError: wrong type or outside the constraint; the message gives value, constraint and an example.
    """
    checked = _typed(key, value)
    for number in values(checked) if key.need else ():
        for sign, bound in re.findall(r"([<>]=?) (\S+)", key.need):
            if not _COMPARE[sign](number, float(bound)):
                raise ConfigError(f"{key.path} = {number!r} must be {key.need}{_example(key)}")
    return checked


def _typed(key: Key, value: Any) -> Any:
    if get_origin(key.hint) is Literal:
        choices = get_args(key.hint)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key.path} = {value!r} must be one of {', '.join(choices)}{hint}")
        return value
    if key.hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise _wrong_type(key, value, "a list of names")
        return tuple(value)
    if key.hint == GymTasks:
        if not isinstance(value, Mapping) or not all(isinstance(task, Mapping) for task in value.values()):
            raise _wrong_type(key, value, "a table of tasks, each a table of arguments")
        return {name: dict(task) for name, task in value.items()}
    if key.hint == FieldTexts:
        if not isinstance(value, Mapping):
            raise _wrong_type(key, value, 'a table of texts, { prompt = "question" }')
        return dict(value)
    if key.hint == FileWeights:
        weights = list(value.values()) if isinstance(value, Mapping) else [None]
        if not all(isinstance(number, int | float) and 0 < number < math.inf for number in weights):
            raise _wrong_type(key, value, 'a table of files and weights above 0, { "FILE.jsonl" = 0.5 }')
        return {name: float(number) for name, number in value.items()}
    if key.hint in (bool, str):
        if not isinstance(value, key.hint):
            raise _wrong_type(key, value, "true or false" if key.hint is bool else "text in quotes")
        return value
    whole = key.hint in (int, IntSchedule)
    if isinstance(value, list | tuple) and key.hint in (IntSchedule, Schedule):
        return _pieces(key, value, whole)
    if isinstance(value, list | tuple):
        raise _wrong_type(key, value, "one number for the whole stage, not a schedule")
    return _number(key, value, whole)


def _number(key: Key, value: Any, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong_type(key, value, "a whole number" if whole else "a number")
    if whole and value != int(value):
        raise _wrong_type(key, value, "a whole number")
    return int(value) if whole else float(value)


def _pieces(key: Key, value: list[Any] | tuple[Any, ...], whole: bool) -> tuple[tuple[int, int | float], ...]:
    if not all(isinstance(piece, list | tuple) and len(piece) == 2 for piece in value):
        raise _wrong_type(key, value, "a number or [[step, value], ...]")
    pieces = tuple((int(_number(key, step, True)), _number(key, number, whole)) for step, number in value)
    try:
        return check_pieces(pieces)
    except ValueError as error:
        raise ConfigError(f"{key.path} = {value!r}: {error}") from None


def _wrong_type(key: Key, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key.path} = {value!r} must be {wanted}{_example(key)}")


def _example(key: Key) -> str:
    plain = key.default[0][1] if isinstance(key.default, tuple) and key.hint in (IntSchedule, Schedule) else key.default
    return f"; for example {plain!r}" if isinstance(plain, int | float) and not isinstance(plain, bool) else ""
