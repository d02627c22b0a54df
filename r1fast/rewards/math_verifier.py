r"""math-verify in a verifier process: the same verdicts, without its slowest step where that cannot change them.

Imports nothing of r1fast: it is loaded by path. `simplify` of a difference takes tens of milliseconds and is zero only
for expressions that are equal everywhere; two expressions that are clearly apart at a point need not go through it.
"""

from __future__ import annotations

import cmath
import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_MAX_NODES = 200
# math-verify rounds to 6 decimals where a number has a decimal point; further apart than this nothing is equal.
_CLEARLY_APART = 1e-3


def load() -> Callable[[str, str], float]:
    """A function of (gold, answer): 1.0 where math-verify calls them equal, else 0.0.

    Its own alarm clocks are off, the parent holds the clock.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns at every call that its clocks are off
    extraction = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

    @lru_cache(maxsize=4096)
    def parse_one(text: str) -> list[Any]:
        found: list[Any] = parse(text, extraction, parsing_timeout=0)
        return found

    def run(gold: str, answer: str) -> float:
        right = parse_one(gold if "$" in gold or "\\boxed" in gold else f"\\boxed{{{gold}}}")
        given = parse_one(answer if "$" in answer.replace("\\$", "") else f"\\boxed{{{answer}}}")
        if _differ(right, given):
            return 0.0
        return float(verify(right, given, timeout_seconds=0))

    run("\\frac{1}{2}", "\\sqrt{3}")  # the first call reads the grammar, and imports more
    return run


def _differ(right: list[Any], given: list[Any]) -> bool:
    """Whether a scalar expression and what is given differ clearly, in value and in spelling.

    math-verify takes the last side of a chain of equations, and one answer is never a list in which another stands.
    """
    if len(right) != 2 or len(given) != 2 or right[1].strip() == given[1].strip():
        return False
    return any(_apart(right[0], _last_side(part)) for part in _parts(given[0]))


def _parts(answer: Any) -> tuple[Any, ...]:
    """The elements of a list or a set, else the answer itself."""
    parts: tuple[Any, ...] = answer.args if type(answer).__name__ in ("FiniteSet", "Tuple") else (answer,)
    return parts


def _last_side(answer: Any) -> Any:
    """What an equation, or a chain of them, says that something equals."""
    if type(answer).__name__ == "And":
        chain = getattr(answer, "_unsorted_args", ())
        return _last_side(chain[-1]) if chain and all(type(x).__name__ == "Equality" for x in chain) else answer
    return answer.rhs if type(answer).__name__ == "Equality" else answer


def _apart(*expressions: Any) -> bool:
    """Whether two expressions are scalars that differ clearly somewhere."""
    if any(isinstance(expression, str) or getattr(expression, "is_Symbol", True) for expression in expressions):
        return False  # names are compared by spelling
    try:
        for shift in (0.0, 0.37):
            a, b = (_value(expression, shift, [_MAX_NODES]) for expression in expressions)
            if a is None or b is None or not (cmath.isfinite(a) and cmath.isfinite(b)):
                return False
            if abs(a - b) > _CLEARLY_APART * (1 + abs(a) + abs(b)):
                return True
    except (ArithmeticError, ValueError):
        return False
    return False


def _value(node: Any, shift: float, budget: list[int]) -> complex | None:
    """The value with every variable at a positive point of its own; None for anything but plain scalar algebra.

    Positive, since an identity that needs an assumption on signs holds there, so that nothing equal is told apart.
    """
    budget[0] -= 1
    if budget[0] < 0:
        return None
    if node.is_Symbol:
        return 0.61 + shift + (sum(map(ord, node.name)) * 0.6180339887 % 1.0) if node.is_commutative else None
    name = type(node).__name__
    if node.is_Rational or node.is_Float:
        return complex(float(node))
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name not in _OPERATIONS:
        return None
    values = []
    for argument in node.args:
        value = _value(argument, shift, budget)
        if value is None:
            return None
        values.append(value)
    return _OPERATIONS[name](*values)


def _power(base: complex, exponent: complex) -> complex:
    return cmath.exp(exponent * cmath.log(base)) if base else base**exponent


_CONSTANTS: dict[str, complex] = {"Pi": math.pi, "Exp1": math.e, "ImaginaryUnit": 1j}
_OPERATIONS: dict[str, Callable[..., complex]] = {
    "Add": lambda *values: sum(values, 0j),
    "Mul": lambda *values: math.prod(values, start=1 + 0j),
    "Pow": _power,
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "exp": cmath.exp,
    "log": cmath.log,
    "Abs": abs,
}
