"""Small changes of a Python source that a good test notices: operators of mutation on its syntax tree."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"min": "max", "minimum": "maximum", "any": "all", "amin": "amax", "floor": "ceil", "isnan": "isinf"}
NAMES |= {there: here for here, there in NAMES.items()}
SHOWN = ("__repr__", "__str__", "extra_repr")  # what people read, as are the texts of errors


@dataclass(frozen=True)
class Mutant:
    """One change. ``edit`` makes it in the tree that it was found in.

    Attributes:
        operator: what kind of change.
        line: where.
        scope: the function, with its classes.
        before: the text of the smallest statement or expression around the change.
        after: the same text once changed.
        number: which of several with the same text in this function.
    """

    operator: str
    line: int
    scope: str
    before: str
    after: str
    number: int
    edit: Callable[[], None]

    def key(self, file: str) -> str:
        """A name that stays as long as the text around the change does."""
        told = f"{file} {self.scope} {self.operator} {self.before} {self.after} {self.number}"
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def mutants(tree: ast.Module) -> list[Mutant]:
    """Every change of a tree; after one ``edit`` only that tree's ``compile`` makes sense."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for node, shown, scope in _nodes(tree, tree, ""):
        for operator, owner, name, value in _changes(node):
            line = getattr(node, "lineno", 0)
            old = getattr(owner, name)
            if operator == "no statement":
                gone = next(x for x, y in zip(old, value, strict=True) if x is not y)
                before, after, line = ast.unparse(gone), "pass", gone.lineno
            else:
                before = ast.unparse(shown)
                setattr(owner, name, value)
                after = ast.unparse(shown)
                setattr(owner, name, old)
            same = (scope, operator, before, after)
            seen[same] += 1

            def edit(owner: ast.AST = owner, name: str = name, value: object = value) -> None:
                setattr(owner, name, value)
                ast.fix_missing_locations(tree)

            found.append(Mutant(operator, line, scope, before, after, seen[same], edit))
    return found


Change = tuple[str, ast.AST, str, object]  # the operator, and which attribute of which node gets which value


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            new = [*node.ops[:i], COMPARED[type(op)](), *node.ops[i + 1 :]]
            yield "comparison", node, "ops", new
    elif isinstance(node, ast.BoolOp):
        yield "and, or", node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        yield "arithmetic", node, "op", COMPUTED[type(node.op)]()
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    yield from _statements(node)


def _constants(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield "truth", node, "value", not value
    elif isinstance(value, int) and value >= 8:  # a size that somebody chose: one more or less means nothing
        yield "constant", node, "value", value * 2
        yield "constant", node, "value", value // 2
    elif isinstance(value, int):
        yield "constant", node, "value", value + 1
        yield "constant", node, "value", value - 1
    elif isinstance(value, float):
        yield "constant", node, "value", value * 2 if value else 1.0


def _calls(node: ast.Call) -> Iterator[Change]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in NAMES:
        yield "other function", function, "id", NAMES[function.id]
    if isinstance(function, ast.Attribute):
        if function.attr in NAMES:
            yield "other function", function, "attr", NAMES[function.attr]
        if function.attr == "where" and len(node.args) == 3:
            yield "other branch", node, "args", [node.args[0], node.args[2], node.args[1]]


def _statements(node: ast.AST) -> Iterator[Change]:
    """Changes of a whole statement, or of a field that holds an expression."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not | ast.Invert):
            yield "no not", node, name, value.operand
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
        call = node.value
        if isinstance(call.func, ast.Attribute) and not _is_module(call.func.value):
            yield "argument returned", node, "value", call.func.value
        elif call.args and not isinstance(call.args[0], ast.Starred | ast.GeneratorExp):
            yield "argument returned", node, "value", call.args[0]
    if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Raise | ast.Return):
        yield "no guard", node, "test", ast.Constant(False)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and not isinstance(node, ast.ClassDef | ast.Module):
            for i, statement in enumerate(block):
                if _can_go(statement):
                    yield "no statement", node, name, [*block[:i], ast.Pass(), *block[i + 1 :]]


def _can_go(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Assign):
        return all(isinstance(t, ast.Attribute | ast.Subscript) for t in statement.targets)
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Break)


def _is_module(node: ast.AST) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("torch", "math", "F", "operator", "parametrize")


def _nodes(node: ast.AST, shown: ast.AST, scope: str) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """Every node that may change, the piece of text to show with it, and the function that it is in."""
    yield node, shown, scope
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in _live(children):
            if not isinstance(child, ast.AST) or _skipped(child):
                continue
            inner, around = scope, shown
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
            if isinstance(child, ast.stmt) or isinstance(node, ast.If | ast.While | ast.For | ast.With):
                around = child
            yield from _nodes(child, around, inner)


def _live(children: list[object]) -> list[object]:
    """Without statements that only prepare the text of an error: assignments in front of the ``raise`` of a block."""
    if len(children) > 1 and isinstance(children[-1], ast.Raise):
        return [c for c in children if not isinstance(c, ast.Assign | ast.Raise)]
    return children


def _skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in SHOWN
    if isinstance(node, ast.keyword):
        return node.arg in ("strict", "stacklevel", "indent")  # an assertion of ours, and what people read
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        return called in ("warnings.warn", "TypeVar", "cast") or called.endswith("Error")
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "TypeAlias"
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
