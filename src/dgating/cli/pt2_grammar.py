"""What the strings of a ``.pt2`` file may say: each is parsed here before torch may evaluate it.

``torch.export.load`` gives sizes to ``eval``, looks operators up by attribute, imports what a tree names, and writes
the names of nodes into Python code. So each of these strings has a grammar, and nothing outside of it is passed on.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import torch

from dgating.cli.json_limits import parse

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,6}")
PATH = re.compile(r"[\w \-+/@:]*(\.[\w \-+/@:]+)*")
DEVICE = re.compile(r"[a-z]{1,16}")

# --- sizes ---

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
        >>> from dgating.cli.pt2_grammar import expression
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


# --- names ---


def identifier(text: str) -> str:
    """A name that torch writes into Python code."""
    return _match(IDENTIFIER, text, "a name of letters, digits and _")


def name(text: str) -> str:
    """A name, or none."""
    return identifier(text) if text else ""


def symbol(text: str) -> str:
    """A free size, as ``s0``."""
    return _match(SYMBOL, text, "a symbol such as s0")


def path(text: str) -> str:
    """The path of a module or tensor: torch writes it between quotes into Python code."""
    return _match(PATH, text, "a path such as layers.0.weight")


def device(text: str) -> str:
    """A kind of device."""
    return _match(DEVICE, text, "a device such as cpu")


def words(text: str) -> str:
    """Any line of text that is not evaluated: the mode of an operator."""
    if len(text) > 1_000 or not text.isprintable():
        raise ValueError(f"expected a printable line, received {text[:80]!r}")
    return text


def _match(pattern: re.Pattern[str], text: str, expected: str) -> str:
    if len(text) > 1_000 or not pattern.fullmatch(text):
        raise ValueError(f"expected {expected}, received {text[:80]!r}")
    return text


# --- operators ---

ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
ARITHMETIC = {
    *(f"_operator.{n}" for n in (
        "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow", "truediv",
        "and_", "or_", "lshift", "rshift",
    )),
    *(f"torch.sym_{n}" for n in ("not", "int", "float", "ite", "max", "min", "sqrt")),
    "math.trunc",
}  # fmt: skip
REGIONS = {
    f"torch.ops.higher_order.{n}"
    for n in ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop", "scan", "map_impl")
}
PLAIN = re.compile(
    r"(Optional\[|List\[)*(Tensor|number|int|float|bool|complex|str|Device|Generator|ScalarType|Layout|MemoryFormat"
    r"|SymInt|NoneType|QScheme|Scalar|Dimname)\]*"
)
MODES = {
    "approximate", "mode", "reduce", "norm", "equation", "padding", "padding_side", "UPLO", "driver", "ord", "p",
    "indexing", "interpolation", "rounding_mode", "side", "pad_mode", "msg", "assert_msg", "api_name", "dtype_layout",
}  # fmt: skip


def operator(text: str) -> str:
    """An operator that computes tensors from tensors: of ATen, arithmetic of sizes, or a region of the graph.

    Whatever reads or writes a file, prints, or takes an object other than a tensor or a number is none of these.
    """
    if text in ARITHMETIC or text in REGIONS:
        return text
    found = ATEN.fullmatch(text)
    if found is not None:
        overload = _overload(*found.groups())
        if overload is not None and _computes(overload._schema):
            return text
    raise ValueError(
        f"expected an operator of ATen that computes tensors, received {text[:80]!r}. If you trust the file, load it "
        "with torch.export.load and pass its module to dg.compact"
    )


def _overload(packet: str, overload: str) -> torch._ops.OpOverload | None:
    if packet.startswith("__") and not packet.endswith("__"):
        return None
    try:
        found = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError:
        return None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _computes(schema: Any) -> bool:
    for argument in (*schema.arguments, *schema.returns):
        kind = str(argument.type)
        if not PLAIN.fullmatch(kind):
            return False
        if "str" in kind and argument.name not in MODES:
            return False
    tensors = [str(a.type) for a in (*schema.arguments, *schema.returns)]
    return any("Tensor" in kind or "number" in kind for kind in tensors)


# --- trees of inputs and outputs ---

TREES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def tree(text: str) -> str:
    """How inputs or outputs are nested, in tuples, lists and dicts; another mapping with known keys becomes a dict.

    torch imports whatever module an enumeration or a named tuple in such a text names.
    """
    spec = parse(text.encode(), "a tree of inputs or outputs")
    if not isinstance(spec, list) or len(spec) != 2 or spec[0] != 1:
        raise ValueError(f"expected a tree of inputs or outputs of version 1, received {text[:80]!r}")
    return _dumps([1, _subtree(spec[1])])


def keywords(text: str) -> str:
    """A tree of inputs: torch writes the names of keyword arguments into Python code."""
    checked = tree(text)
    children = parse(checked.encode(), "a tree of inputs")[1]["children_spec"]
    if len(children) == 2 and children[1]["type"] in TREES[2:]:
        for key in parse(children[1]["context"].encode(), "keys"):
            identifier(str(key))
    return checked


def _subtree(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        raise ValueError("expected type, context and children of a tree")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list) or len(children) > 10_000:
        raise ValueError("expected a list of children in a tree")
    if kind is None and context is None and not children:
        return node
    if not isinstance(kind, str) or not isinstance(context, str):
        raise ValueError("expected the type of a tree")
    below = [_subtree(child) for child in children]
    if kind in TREES[:2]:
        if context != "null":
            raise ValueError(f"expected no context of a {kind}, received {context[:80]!r}")
    else:
        keys = parse(context.encode(), "the keys of a tree")
        if not isinstance(keys, list) or len(keys) != len(children):
            raise ValueError(f"expected a tuple, list or dict, received {kind[:80]!r}")
        context = _dumps([words(k) if isinstance(k, str) else _whole(k) for k in keys])
        kind = kind if kind in TREES else "builtins.dict"
    return {"type": kind, "context": context, "children_spec": below}


def _whole(key: Any) -> int:
    if type(key) is not int:
        raise ValueError(f"expected names or numbers as keys of a tree, received {type(key).__name__}")
    return key


def _dumps(value: Any) -> str:
    import json

    return json.dumps(value)
