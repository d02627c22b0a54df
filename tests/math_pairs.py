r"""Writes data/math_pairs.jsonl: answer pairs whose equality is known by construction or by hand, and what math-verify
says. `python tests/math_pairs.py` (a minute); the test reads what it wrote.

A pair whose `verdict` is not `equal` has a `note`: there math-verify itself errs, or has a rule of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

PATH = Path(__file__).parent / "data" / "math_pairs.jsonl"
Pair = tuple[str, str, str, bool]  # kind, gold, answer, equal


def integers() -> Iterator[Pair]:
    for n in (0, 1, 7, -3, 42, 100, -256, 999, 1000, 12345, 1234567, -98765):
        yield "integer", str(n), f"{n}.0", True
        yield "integer", str(n), f"{n} + 1 - 1" if n == 7 else str(n), True
        yield "integer", str(n), str(n + 1), False
        yield "integer", str(n), f"${n}$", True
        if abs(n) >= 1000:
            yield "integer", str(n), f"{n:,}", True
            yield "integer", str(n), f"{n:,}".replace(",", "{,}"), True
        if n:
            yield "integer", str(n), str(-n), False
            yield "integer", str(n), f"{10 * n}", False


def fractions() -> Iterator[Pair]:
    for a, b in ((1, 2), (3, 4), (-5, 6), (7, 3), (22, 7), (1, 9), (-2, 11), (13, 8), (5, 16), (100, 3)):
        sign, n = ("-" if a < 0 else ""), abs(a)
        gold = f"{sign}\\frac{{{n}}}{{{b}}}"
        for same in (
            f"{a}/{b}",
            f"{sign}\\dfrac{{{n}}}{{{b}}}",
            f"\\frac{{{2 * a}}}{{{2 * b}}}",
            f"\\frac{{{a}}}{{{b}}}",
        ):
            yield "fraction", gold, same, True
        for other in (f"{a}/{b + 1}", f"\\frac{{{b}}}{{{a}}}", f"{-a}/{b}", f"\\frac{{{a + b}}}{{{b}}}"):
            yield "fraction", gold, other, False
        if n < 10 and b < 10:
            yield "fraction", gold, f"{sign}\\frac{n}{b}", True
        value = Fraction(a, b)
        whole, rest = divmod(abs(value), 1)
        if whole:
            yield "mixed number", gold, f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}", True
            yield "mixed number", gold, f"{sign}{whole + 1}\\frac{{{rest.numerator}}}{{{rest.denominator}}}", False
        digits = f"{float(value):.8f}"
        yield "decimal", gold, digits, True  # equal to 6 decimals
        yield "decimal", gold, f"{float(value) + 0.01:.8f}", False


def decimals() -> Iterator[Pair]:
    for text, numerator, denominator in (
        ("0.5", 1, 2), ("2.75", 11, 4), ("-1.2", -6, 5), ("0.125", 1, 8), (".4", 2, 5), ("3.14", 157, 50),
        ("10.0", 10, 1), ("0.001", 1, 1000), ("123.456", 15432, 125),
    ):  # fmt: skip
        yield "decimal", text, f"\\frac{{{numerator}}}{{{denominator}}}", True
        yield "decimal", text, f"{numerator}/{denominator}", True
        yield "decimal", text, f"{text}0", True
        yield "decimal", text, f"\\frac{{{numerator}}}{{{denominator + 1}}}", False
        yield "decimal", text, f"{text}1", text == "none"


def percents() -> Iterator[Pair]:
    for n in (5, 12, 25, 50, 75, 110):
        yield "percent", f"{n}\\%", f"{n}%", True
        yield "percent", f"{n}\\%", f"{n}", True  # the unit left out
        yield "percent", f"{n}\\%", f"{n / 100:g}", True
        yield "percent", f"{n}\\%", f"{n + 1}\\%", False
        yield "percent", f"{n}\\%", f"{n} percent", True
        yield "percent", f"{n}\\%", f"{n / 1000:g}", False


def units() -> Iterator[Pair]:
    for n, unit in ((5, "cm"), (12, "kg"), (30, "minutes"), (7, "m"), (18, "hours"), (4, "feet")):
        yield "unit", str(n), f"{n}\\text{{ {unit}}}", True
        yield "unit", f"{n}\\text{{ {unit}}}", str(n), True
        yield "unit", str(n), f"{n}\\,\\mathrm{{{unit}}}", True
        yield "unit", f"{n}\\text{{ {unit}}}", f"{n + 1}\\text{{ {unit}}}", False
    for n in (15, 90, 240):
        yield "unit", str(n), f"\\${n}", True
        yield "unit", f"{n}^\\circ", f"{n}^{{\\circ}}", True
        yield "unit", f"{n}^\\circ", f"{n + 5}^\\circ", False
        yield "unit", str(n), f"\\${n + 1}", False


def radicals() -> Iterator[Pair]:
    for outer, inner in ((2, 2), (2, 3), (3, 5), (5, 2), (4, 7), (10, 3)):
        gold = f"{outer}\\sqrt{{{inner}}}"
        square = outer * outer * inner
        for same in (
            f"\\sqrt{{{square}}}",
            f"\\sqrt{{{inner}}}\\cdot {outer}",
            f"\\frac{{{outer * inner}}}{{\\sqrt{{{inner}}}}}",
            f"{outer + 1}\\sqrt{{{inner}}} - \\sqrt{{{inner}}}",
            f"{outer} \\times \\sqrt{{{inner}}}",
        ):
            yield "radical", gold, same, True
        for other in (f"\\sqrt{{{square + 1}}}", f"{outer + 1}\\sqrt{{{inner}}}", f"-{gold}", str(outer * inner)):
            yield "radical", gold, other, False
    for k in (2, 3, 5):
        yield "radical", f"\\sqrt[3]{{{k**3}}}", str(k), True
        yield "radical", f"{k}\\sqrt[3]{{2}}", f"\\sqrt[3]{{{2 * k**3}}}", True
        yield "radical", f"\\sqrt[3]{{{k**3}}}", str(k + 1), False
    yield "radical", "\\frac{1+\\sqrt{5}}{2}", "\\frac{2}{\\sqrt{5}-1}", True
    yield "radical", "\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}", True
    yield "radical", "\\frac{1+\\sqrt{5}}{2}", "\\frac{1-\\sqrt{5}}{2}", False
    yield "radical", "\\sqrt2", "2^{1/2}", True


def powers() -> Iterator[Pair]:
    for base, exponent in ((2, 10), (3, 5), (5, 3), (7, 2), (10, 6)):
        yield "power", f"{base}^{{{exponent}}}", str(base**exponent), True
        yield "power", str(base**exponent), f"{base}^{{{exponent}}}", True
        yield "power", f"{base}^{{-{exponent}}}", f"\\frac{{1}}{{{base**exponent}}}", True
        yield "power", f"{base}^{{{exponent}}}", f"{base}^{{{exponent + 1}}}", False
        yield "power", f"{base}^{{{exponent}}}", str(base * exponent), False
    for n in (3, 4, 5, 6):
        product = {3: 6, 4: 24, 5: 120, 6: 720}[n]
        yield "factorial", f"{n}!", str(product), True
        yield "factorial", f"{n}!", str(product + 1), False
    yield "binomial", "\\binom{5}{2}", "10", True
    yield "binomial", "\\binom{6}{3}", "20", True
    yield "binomial", "\\binom{6}{3}", "18", False
    yield "power", "3 \\times 10^{4}", "30000", True
    yield "power", "2.5 \\times 10^3", "2500", True
    yield "power", "2.5 \\times 10^3", "25000", False


def circles() -> Iterator[Pair]:
    for a, b in ((1, 6), (2, 3), (3, 4), (5, 1), (7, 2)):
        gold = f"\\frac{{{a}\\pi}}{{{b}}}"
        yield "pi", gold, f"\\frac{{{a}}}{{{b}}}\\pi", True
        yield "pi", gold, f"{a}\\pi/{b}", True
        yield "pi", gold, f"\\frac{{{2 * a}\\pi}}{{{2 * b}}}", True
        yield "pi", gold, f"\\frac{{{a}\\pi}}{{{b + 1}}}", False
        yield "pi", gold, f"\\frac{{{a}}}{{{b}}}", False
        yield "pi", gold, f"{a * 3.141592653589793 / b:.8f}", True
    for angle, value in (("\\frac{\\pi}{6}", "\\frac{1}{2}"), ("\\frac{\\pi}{2}", "1"), ("\\pi", "0")):
        yield "trigonometry", f"\\sin({angle})", value, True
        yield "trigonometry", f"\\sin({angle})", f"{value}+1", False
    yield "trigonometry", "\\cos(\\frac{\\pi}{3})", "\\frac{1}{2}", True
    yield "trigonometry", "\\tan(\\frac{\\pi}{4})", "1", True
    yield "trigonometry", "\\sin^2(x)+\\cos^2(x)", "1", True
    yield "trigonometry", "2\\sin(x)\\cos(x)", "\\sin(2x)", True
    yield "trigonometry", "2\\sin(x)\\cos(x)", "\\cos(2x)", False


def logarithms() -> Iterator[Pair]:
    for base, exponent in ((2, 3), (3, 2), (10, 3), (5, 2)):
        yield "logarithm", f"\\log_{{{base}}} {base**exponent}", str(exponent), True
        yield "logarithm", f"\\log_{{{base}}} {base**exponent}", str(exponent + 1), False
    yield "logarithm", "\\ln(e^2)", "2", True
    yield "logarithm", "2\\ln 3", "\\ln 9", True
    yield "logarithm", "\\ln 6", "\\ln 2+\\ln 3", True
    yield "logarithm", "\\ln 6", "\\ln 5", False
    yield "exponential", "e^{2}", "e \\cdot e", True
    yield "exponential", "e^{2}", "e^{3}", False
    yield "exponential", "e^{x+1}", "e \\cdot e^{x}", True


def polynomials() -> Iterator[Pair]:
    for x in "xyn":
        for a, b in ((1, 2), (3, -1), (-2, -5), (4, 4)):
            total, product = a + b, a * b
            middle = f"{total:+d}{x}" if total not in (1, -1) else f"{'+' if total > 0 else '-'}{x}"
            gold = f"{x}^2{middle if total else ''}{product:+d}"
            yield "polynomial", gold, f"({x}{a:+d})({x}{b:+d})", True
            yield "polynomial", gold, f"{product}{middle if total else ''}+{x}^2", True
            yield "polynomial", gold, f"({x}{a + 1:+d})({x}{b:+d})", False
            yield "polynomial", gold, f"{gold}+1", False
    yield "polynomial", "(x+1)^3", "x^3+3x^2+3x+1", True
    yield "polynomial", "(x+1)^3", "x^3+3x^2+3x+2", False
    yield "polynomial", "x^4-1", "(x^2+1)(x+1)(x-1)", True
    yield "polynomial", "2x+3y", "3y+2x", True
    yield "polynomial", "2x+3y", "3x+2y", False
    yield "polynomial", "x", "y", False
    yield "polynomial", "xy", "yx", True
    yield "polynomial", "\\frac{x}{2}", "\\frac{1}{2}x", True
    yield "polynomial", "\\frac{x}{2}", "0.5x", True
    for k in (1, 2, 3):
        yield "rational function", f"\\frac{{x+{k}}}{{x-{k}}}", f"1+\\frac{{{2 * k}}}{{x-{k}}}", True
        yield "rational function", f"\\frac{{x^2-{k * k}}}{{x-{k}}}", f"x+{k}", True
        yield "rational function", f"\\frac{{1}}{{x+{k}}}", f"\\frac{{1}}{{x-{k}}}", False
        yield "rational function", f"\\frac{{1}}{{x}}+\\frac{{{k}}}{{y}}", f"\\frac{{y+{k}x}}{{xy}}", True
        yield "radical", f"\\sqrt{{x^2+{k}}}", f"(x^2+{k})^{{1/2}}", True
        yield "radical", f"\\sqrt{{x^2+{k}}}", f"x+{k}", False
        yield "function", f"f(x)={k}x+1", f"f(x)=1+{k}x", True
        yield "function", f"f(x)={k}x+1", f"f(x)={k}x+2", False


def sets() -> Iterator[Pair]:
    for values in ((1, 2), (1, 2, 3), (-4, 0, 9), (2, 5, 11, 23)):
        items = [str(value) for value in values]
        gold = "\\{" + ", ".join(items) + "\\}"
        yield "set", gold, "\\{" + ",".join(reversed(items)) + "\\}", True
        yield "set", gold, "\\{" + ",".join(items[:-1]) + "\\}", False
        yield "set", gold, "\\{" + ",".join([*items[:-1], str(values[-1] + 1)]) + "\\}", False
        yield "list", ", ".join(items), ",".join(reversed(items)), True
        yield "list", ", ".join(items), " and ".join([", ".join(items[:-1]), items[-1]]), True
        yield "list", ", ".join(items), ", ".join([*items[:-1], str(values[-1] + 1)]), False
    yield "set", "\\{\\frac{1}{2}, 3\\}", "\\{3, 0.5\\}", True
    yield "set", "\\{\\sqrt{8}, 1\\}", "\\{1, 2\\sqrt{2}\\}", True
    yield "set", "\\emptyset", "\\{\\}", True
    yield "set", "\\emptyset", "\\{0\\}", False
    yield "set", "1, -1", "\\pm 1", True
    yield "list", "2 \\pm \\sqrt{3}", "2+\\sqrt{3}, 2-\\sqrt{3}", True
    for a, b, c in ((1, 2, 3), (0, -1, 5), (4, 4, 4)):
        yield "tuple", f"({a},{b},{c})", f"({a}, {b}, {c})", True
        yield "tuple", f"({a},{b},{c})", f"\\left({a},{b},{c}\\right)", True
        yield "tuple", f"({a},{b},{c})", f"({a},{b},{c + 1})", False
        yield "tuple", f"({a},{b},{c})", f"({c},{b},{a})", a == c
        yield "tuple", f"({a},{b})", f"({a},{b + 1})", False
        yield "tuple", f"({a},{b})", f"({2 * a}/2,{b})", True


def intervals() -> Iterator[Pair]:
    for a, b in (("0", "1"), ("-2", "5"), ("1", "\\infty"), ("-\\infty", "3"), ("\\frac{1}{2}", "4")):
        for left in "([":
            for right in ")]":
                if (left == "[" and "infty" in a) or (right == "]" and "infty" in b):
                    continue
                gold = f"{left}{a},{b}{right}"
                yield "interval", gold, f"\\left{left}{a}, {b}\\right{right}", True
                yield "interval", gold, f"{'[' if left == '(' else '('}{a},{b}{right}", "infty" in a
                yield "interval", gold, f"{left}{a},{b}0{right}" if "infty" not in b else f"{left}2,{b}{right}", False
    yield "interval", "(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty)\\cup(-\\infty,2)", True
    yield "interval", "(-\\infty,2)\\cup(3,\\infty)", "(-\\infty,2)\\cup(4,\\infty)", False
    yield "interval", "[0.5,4]", "[\\frac{1}{2},4]", True
    yield "interval", "[1,2]\\cup[2,3]", "[1,3]", True


def relations() -> Iterator[Pair]:
    for k in (1, 2, 5):
        yield "equation", f"x={k}", str(k), True
        yield "equation", str(k), f"x={k}", True
        yield "equation", f"x={k}", f"x = {k}", True
        yield "equation", f"x={k}", f"x={k + 1}", False
        yield "equation", f"x={k}", f"y={k}", False
        yield "equation", f"y=2x+{k}", f"y={k}+2x", True
        yield "equation", f"y=2x+{k}", f"y=2x-{k}", False
        yield "equation", f"2x+y={k}", f"y={k}-2x", True
        yield "inequality", f"x<{k}", f"{k}>x", True
        yield "inequality", f"x \\leq {k}", f"{k} \\geq x", True
        yield "inequality", f"x<{k}", f"x>{k}", False
        yield "inequality", f"x<{k}", f"x<{k + 1}", False
        yield "inequality", f"{k}<x<{k + 1}", f"({k},{k + 1})", True
        yield "inequality", f"{k} \\le x < {k + 1}", f"[{k},{k + 1})", True
        yield "inequality", f"{k}<x<{k + 1}", f"({k},{k + 2})", False
        yield "inequality", f"x>{k}", f"({k},\\infty)", True


def parts() -> Iterator[Pair]:
    """One expression, and a chain of equations or a list in which it stands or does not."""
    for k in (2, 3, 7):
        gold = f"{k}\\sin({k}x)+1"
        yield "chain", gold, f"y={k}\\sin({k}x)+1", True
        yield "chain", gold, f"y'=1+0={k}\\sin({k}x)+1", True
        yield "chain", gold, f"{k}\\sin({k}x)+1=x", False
        yield "chain", gold, f"x+{k}=5x={k}\\cos({k}x)+1", False
        yield "chain", str(k), f"1+{k - 1}={k}", True
        yield "chain", str(k), f"{k}=1+{k - 1}=1+{k}", False
        yield "chain", str(k), f"\\log_{{2}} {2**k} = {k}", True
        yield "list", gold, f"{k}\\sin({k}x)+1, {k}", False
        yield "list", gold, f"\\{{1+{k}\\sin({k}x)\\}}", True
        yield "list", gold, f"\\{{y={k}\\sin({k}x)\\}}", False
        yield "list", str(k), f"{k}, {2 * k}/2", True
        yield "list", str(k), f"{k}, {k + 1}", False
        yield "list", str(k), f"({k}, {k}, {k + 1})", False


def matrices() -> Iterator[Pair]:
    for values in ((1, 2), (0, -3), (5, 8)):
        a, b = values
        column = f"\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}"
        square = f"\\begin{{pmatrix}}{a}&{b}\\\\{b}&{a}\\end{{pmatrix}}"
        yield "matrix", column, f"\\begin{{bmatrix}} {a} \\\\ {b} \\end{{bmatrix}}", True
        yield "matrix", column, f"\\begin{{pmatrix}}{a}\\\\{b + 1}\\end{{pmatrix}}", False
        yield "matrix", square, f"\\begin{{bmatrix}}{a}&{b}\\\\{b}&{a}\\end{{bmatrix}}", True
        yield "matrix", square, f"\\begin{{pmatrix}}{a}&{b}\\\\{b}&{a + 1}\\end{{pmatrix}}", False
        yield "matrix", column, f"\\begin{{pmatrix}}{2 * a}/2\\\\{b}\\end{{pmatrix}}", True


def complexes() -> Iterator[Pair]:
    for a, b in ((3, 4), (1, -2), (-5, 7)):
        gold = f"{a}{b:+d}i"
        yield "complex", gold, f"{b}i{a:+d}", True
        yield "complex", gold, f"{a}{-b:+d}i", False
        yield "complex", gold, f"{a + 1}{b:+d}i", False
        yield "complex", str(a * a + b * b), f"({a}{b:+d}i)({a}{-b:+d}i)", True
    yield "complex", "i^2", "-1", True
    yield "complex", "i", "-i", False


def choices() -> Iterator[Pair]:
    for letter, other in zip("ABCDE", "BCDEA", strict=True):
        yield "choice", letter, f"\\text{{{letter}}}", True
        yield "choice", f"\\text{{{letter}}}", letter, True
        yield "choice", letter, f"\\textbf{{{letter}}}", True
        yield "choice", letter, f"({letter})", True
        yield "choice", letter, other, False
        yield "choice", f"\\text{{({letter})}}", f"\\text{{({other})}}", False
    yield "text", "\\text{even}", "even", True
    yield "text", "\\text{even}", "odd", False
    yield "text", "\\text{Monday}", "\\text{monday}", True
    yield "text", "\\text{Monday}", "\\text{Tuesday}", False


GENERATORS = (
    *(integers, fractions, decimals, percents, units, radicals, powers, circles, logarithms, polynomials, sets),
    *(intervals, relations, parts, matrices, complexes, choices),
)


def pairs() -> list[Pair]:
    """Every pair once, in order."""
    return list(dict.fromkeys(pair for generator in GENERATORS for pair in generator()))


def own_verdict(gold: str, answer: str) -> bool:
    """math-verify's, by nothing but its two public functions."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    extraction = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    texts = (text if "$" in text.replace("\\$", "") else f"\\boxed{{{text}}}" for text in (gold, answer))
    return bool(verify(*(parse(text, extraction, parsing_timeout=0) for text in texts), timeout_seconds=0))


def main() -> None:
    with PATH.open("w", encoding="utf-8") as file:
        for kind, gold, answer, equal in pairs():
            verdict = own_verdict(gold, answer)
            record = {"kind": kind, "gold": gold, "answer": answer, "equal": equal, "verdict": verdict}
            if verdict != equal:
                record["note"] = "math-verify does not see it" if equal else "math-verify calls them equal"
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
