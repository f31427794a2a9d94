"""What the strings of a ``.pt2`` file may say: each is parsed here before torch may evaluate it.

``torch.export.load`` gives sizes to ``eval``, looks operators up by attribute, imports what a tree names, and writes
the names of nodes into Python code. So each of these strings has a grammar, and nothing outside of it is passed on.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from dgating.cli.pt2_operators import allowed
from dgating.cli.pt2_sizes import SYMBOL
from dgating.files import named_json

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
PATH = re.compile(r"[\w \-+/@:]*(\.[\w \-+/@:]+)*")
DEVICE = re.compile(r"[a-z]{1,16}")


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
        if overload is not None and _computes(overload._schema) and allowed(overload):
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
    spec = named_json(text.encode(), "a tree of inputs or outputs")
    if not isinstance(spec, list) or len(spec) != 2 or spec[0] != 1:
        raise ValueError(f"expected a tree of inputs or outputs of version 1, received {text[:80]!r}")
    return json.dumps([1, _subtree(spec[1])])


def keywords(text: str) -> str:
    """A tree of inputs: torch writes the names of keyword arguments into Python code."""
    checked = tree(text)
    children = named_json(checked.encode(), "a tree of inputs")[1]["children_spec"]
    if len(children) == 2 and children[1]["type"] in TREES[2:]:
        for key in named_json(children[1]["context"].encode(), "keys"):
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
        keys = named_json(context.encode(), "the keys of a tree")
        if not isinstance(keys, list) or len(keys) != len(children):
            raise ValueError(f"expected a tuple, list or dict, received {kind[:80]!r}")
        context = json.dumps([words(k) if isinstance(k, str) else _whole(k) for k in keys])
        kind = kind if kind in TREES else "builtins.dict"
    return {"type": kind, "context": context, "children_spec": below}


def _whole(key: Any) -> int:
    if type(key) is not int:
        raise ValueError(f"expected names or numbers as keys of a tree, received {type(key).__name__}")
    return key
