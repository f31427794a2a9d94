"""Sizes in a ``.pt2`` file: torch gives them to ``eval``, so they are parsed here first."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,6}")
LENGTH, NODES, POWER = 20_000, 1_000, 64
TERMS, BITS = 4_000, 512  # of what sympy can make of an expression: sizes have 63 bits, and are products of a few sums
NUMBER = 64  # bits that a float counts for
FLAGS = {
    "integer", "positive", "nonnegative", "negative", "nonpositive", "real", "finite", "zero", "nonzero", "even", "odd"
}  # fmt: skip
FUNCTIONS = {
    "Add", "Mul", "Pow", "Max", "Min", "Abs", "Rational", "And", "Or", "Not", "Xor", "ITE", "Piecewise", "Tuple",
    "ExprCondPair", "floor", "ceiling", "Equality", "Unequality", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "LessThan",
    "GreaterThan", "StrictLessThan", "StrictGreaterThan", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod",
    "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
    "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    "IsNonOverlappingAndDenseIndicator",
}  # fmt: skip
GROWS = {"Pow", "LShift", "PowByNatural", "FloatPow"}  # of large numbers: huge ones
SUMS = {"Add", "Max", "Min", "And", "Or", "Not", "Xor", "Tuple", "Piecewise", "ExprCondPair", "ITE", "Where"}
OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SIGNS = (ast.UAdd, ast.USub, ast.Invert)


def expression(text: str) -> str:
    """A size, or a condition on sizes, written anew from its parts: numbers, symbols, arithmetic, named functions.

    Raises:
        ValueError: anything else.

    Example:
        >>> from dgating.cli.pt2_sizes import expression
        >>> expression("Add(Symbol('s0', positive=True, integer=True), Integer(-1))")
        "Add(Symbol('s0', positive=True, integer=True), Integer(-1))"
    """
    try:
        if len(text) > LENGTH:
            raise ValueError("too long")
        tree = ast.parse(text, mode="eval")
        if sum(1 for _ in ast.walk(tree)) > 8 * NODES:
            raise ValueError("too long")
        _size(tree.body)
        return ast.unparse(tree)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"expected a size made of numbers and symbols, received {text[:80]!r} ({reason})") from None


@dataclass(frozen=True)
class _Extent:
    """How large an expression can become when sympy multiplies it out.

    Attributes:
        terms: a bound on its terms.
        bits: a bound on the bits of any number in it.
    """

    terms: int = 1
    bits: int = 1

    def __post_init__(self) -> None:
        if self.terms > TERMS or self.bits > BITS:
            raise ValueError(f"it could grow beyond {TERMS} terms, or numbers of {BITS} bits")


def _sum(parts: Iterable[_Extent]) -> _Extent:
    known = list(parts)
    bits = max((p.bits for p in known), default=1)
    return _Extent(max(1, sum(p.terms for p in known)), bits + max(0, len(known) - 1).bit_length())


def _product(parts: Iterable[_Extent]) -> _Extent:
    made = _Extent()
    for part in parts:
        sums = min(made.terms, part.terms).bit_length() - 1  # so many products meet in one coefficient
        made = _Extent(made.terms * part.terms, made.bits + part.bits + sums)
    return made


def _power(base: _Extent, exponent: ast.expr) -> _Extent:
    """As many factors as the exponent says, which is a number."""
    return _product([base] * _exponent(exponent))


def _size(node: ast.expr) -> _Extent:
    if isinstance(node, ast.Constant):
        return _number(node)
    if isinstance(node, ast.Name):
        if not SYMBOL.fullmatch(node.id) and node.id not in ("true", "false", "oo", "int_oo"):
            raise ValueError(f"no symbol: {node.id}")
        return _Extent()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, SIGNS):
        return _size(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, OPERATIONS):
        left, right = _size(node.left), _size(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, node.right)
        return _sum([left, right]) if isinstance(node.op, ast.Add | ast.Sub) else _product([left, right])
    if isinstance(node, ast.Compare) and all(isinstance(op, COMPARISONS) for op in node.ops):
        return _sum(_size(part) for part in (node.left, *node.comparators))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node.func.id, node)
    raise ValueError(f"no arithmetic: {type(node).__name__}")


def _call(name: str, node: ast.Call) -> _Extent:
    if name == "Symbol":
        flags = [k.arg in FLAGS and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
                 for k in node.keywords]  # fmt: skip
        if not all(flags) or len(node.args) != 1 or not SYMBOL.fullmatch(_text(node.args[0])):
            raise ValueError("no symbol")
        return _Extent()
    if name == "Float":
        known = all(
            k.arg == "precision" and isinstance(k.value, ast.Constant) and k.value.value in (24, 53)
            for k in node.keywords
        )
        if not known or len(node.args) != 1 or not re.fullmatch(r"-?[0-9.]{1,40}(e[+-]?\d{1,2})?", _text(node.args[0])):
            raise ValueError("no number")
        return _Extent(1, NUMBER)
    if name == "Integer":
        if node.keywords or len(node.args) != 1:
            raise ValueError("no number")
        inner = node.args[0]
        return _number(inner.operand if isinstance(inner, ast.UnaryOp) else inner)
    if name not in FUNCTIONS or node.keywords:
        raise ValueError(f"no function of sizes: {name}")
    parts = [_size(part) for part in node.args]
    if name in GROWS and len(node.args) == 2:
        if name != "LShift":
            return _power(parts[0], node.args[1])
        _exponent(node.args[1])
        return _product([parts[0], _Extent(1, POWER)])
    # sympy takes quotients apart into factors: as large as a product
    return _sum(parts) if name in SUMS else _product(parts)


def _number(node: ast.expr) -> _Extent:
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float) or abs(node.value) >= 2**64:  # type: ignore[operator, arg-type]
        raise ValueError("no number of at most 64 bits")
    return _Extent(1, node.value.bit_length() + 1 if isinstance(node.value, int) else NUMBER)


def _exponent(node: ast.expr) -> int:
    """The power that a number stands for, at least one. A power of two sizes could fill the memory."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            small = part.id in ("Integer", "Rational", "Float")
        elif isinstance(part, ast.Constant):
            small = abs(float(part.value)) <= POWER  # type: ignore[arg-type]
        else:
            small = isinstance(part, ast.Call | ast.UnaryOp | ast.USub | ast.Load | ast.keyword)
        if not small:
            raise ValueError(f"no power of at most {POWER}")
    values = [abs(float(part.value)) for part in ast.walk(node) if isinstance(part, ast.Constant)]  # type: ignore[arg-type]
    return max(1, *(math.ceil(v) for v in values)) if values else 1


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
