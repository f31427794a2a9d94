"""The graph in a ``.pt2`` file, written anew from what was checked: nothing unknown is passed on to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dgating.cli import pt2_grammar as grammar
from dgating.cli.pt2_sizes import expression

INFINITE = ("Infinity", "-Infinity", "NaN")

# What every string may say, by the name of its field. A string of another field is refused.
STRINGS: dict[str, Callable[[str], str]] = {
    "expr_str": expression,
    "target": grammar.operator,
    "as_operator": grammar.operator,
    "name": grammar.name,
    "as_name": grammar.identifier,
    "forward_arg_names": grammar.identifier,
    "user_input_name": grammar.identifier,
    "parameter_name": grammar.path,
    "buffer_name": grammar.path,
    "tensor_constant_name": grammar.path,
    "fqn": grammar.path,
    "type": grammar.device,
    "as_string": grammar.words,
    "as_strings": grammar.words,
    "nn_module_stack": grammar.words,
    "in_spec": grammar.keywords,
    "out_spec": grammar.tree,
    "verifiers": grammar.name,
}
# Dicts whose keys are chosen by the file, and what these may be. The keys of all others are fields.
KEYS: dict[str, Callable[[str], str]] = {
    "tensor_values": grammar.identifier,
    "sym_int_values": grammar.identifier,
    "sym_float_values": grammar.identifier,
    "sym_bool_values": grammar.identifier,
    "as_string_to_argument": grammar.identifier,
    "range_constraints": grammar.symbol,
}
# Fields that are notes, or code that is not run here, and what stands for them.
DROPPED: dict[str, Any] = {
    "guards_code": [],
    "torch_version": "",
    "opset_version": {},
    "treespec_namedtuple_fields": {},
    "stack_trace": None,
    "source_fn_stack": None,
    "torch_fn": None,
    "custom": None,
    "from_node": None,
}
REFUSED = ("as_custom_obj", "custom_obj", "custom_obj_values")


def checked(program: Any, file: str) -> dict[str, Any]:
    """The same program without notes; every string has the grammar of its field.

    Raises:
        ValueError: a text in a field that has none, or one that says something else.
    """
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        raise ValueError(f"{file!r} holds no exported program.")
    clean = _checked(program, "", file)
    entries = clean["graph_module"].get("module_call_graph")
    if isinstance(entries, list):  # how the modules below were called is a note, too
        clean["graph_module"]["module_call_graph"] = entries[:1]
    return clean


def _checked(value: Any, field: str, file: str) -> Any:
    if isinstance(value, dict):
        return _dict(value, field, file)
    if isinstance(value, list):
        return [_checked(x, field, file) for x in value]
    if isinstance(value, str):
        if field in ("as_float", "as_floats", "as_float_lists", "real", "imag") and value in INFINITE:
            return value
        rule = STRINGS.get(field)
        if rule is None:
            raise ValueError(f"{file!r}: expected no text in {field!r}, received {value[:80]!r}.")
        try:
            return rule(value)
        except ValueError as error:
            raise ValueError(f"{file!r}, {field}: {error}.") from None
    return value


def _dict(value: dict[str, Any], field: str, file: str) -> dict[str, Any]:
    try:
        for key in value:
            KEYS.get(field, grammar.identifier)(key)
    except ValueError as error:
        raise ValueError(f"{file!r}, {field or 'program'}: {error}.") from None
    if field in KEYS:
        return {key: _checked(x, "", file) for key, x in value.items()}
    clean: dict[str, Any] = {}
    for key, x in value.items():
        if key in REFUSED and x:
            raise ValueError(f"{file!r} holds pickled objects ({key}), which are not opened.")
        if key not in DROPPED:
            clean[key] = _checked(x, key, file)
        elif DROPPED[key] is not None:
            clean[key] = DROPPED[key]
    return clean
