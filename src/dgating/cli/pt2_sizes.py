"""Sizes in a ``.pt2`` file: torch gives them to ``eval``, so they are parsed here first."""

from __future__ import annotations

import ast
import re

SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,6}")
LENGTH, NODES, POWER = 20_000, 1_000, 64
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


def _size(node: ast.expr) -> None:
    if isinstance(node, ast.Constant):
        _number(node)
    elif isinstance(node, ast.Name):
        if not SYMBOL.fullmatch(node.id) and node.id not in ("true", "false", "oo", "int_oo"):
            raise ValueError(f"no symbol: {node.id}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, SIGNS):
        _size(node.operand)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, OPERATIONS):
        _size(node.left)
        _size(node.right)
        if isinstance(node.op, ast.Pow):
            _power(node.right)
    elif isinstance(node, ast.Compare) and all(isinstance(op, COMPARISONS) for op in node.ops):
        for part in (node.left, *node.comparators):
            _size(part)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        _call(node.func.id, node)
    else:
        raise ValueError(f"no arithmetic: {type(node).__name__}")


def _call(name: str, node: ast.Call) -> None:
    if name == "Symbol":
        flags = [k.arg in FLAGS and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
                 for k in node.keywords]  # fmt: skip
        if not all(flags) or len(node.args) != 1 or not SYMBOL.fullmatch(_text(node.args[0])):
            raise ValueError("no symbol")
    elif name == "Float":
        known = all(
            k.arg == "precision" and isinstance(k.value, ast.Constant) and k.value.value in (24, 53)
            for k in node.keywords
        )
        if not known or len(node.args) != 1 or not re.fullmatch(r"-?[0-9.]{1,40}(e[+-]?\d{1,3})?", _text(node.args[0])):
            raise ValueError("no number")
    elif name == "Integer":
        if node.keywords or len(node.args) != 1:
            raise ValueError("no number")
        inner = node.args[0]
        _number(inner.operand if isinstance(inner, ast.UnaryOp) else inner)
    elif name in FUNCTIONS and not node.keywords:
        for part in node.args:
            _size(part)
        if name in GROWS and len(node.args) == 2:
            _power(node.args[1])
    else:
        raise ValueError(f"no function of sizes: {name}")


def _number(node: ast.expr) -> None:
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float) or abs(node.value) >= 2**64:  # type: ignore[operator, arg-type]
        raise ValueError("no number of at most 64 bits")


def _power(node: ast.expr) -> None:
    """A power of two sizes could be a number that fills the memory."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            small = part.id in ("Integer", "Rational", "Float")
        elif isinstance(part, ast.Constant):
            small = abs(float(part.value)) <= POWER  # type: ignore[arg-type]
        else:
            small = isinstance(part, ast.Call | ast.UnaryOp | ast.USub | ast.Load | ast.keyword)
        if not small:
            raise ValueError(f"no power of at most {POWER}")


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
