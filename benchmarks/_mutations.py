"""Files that somebody made to do harm: whole ones, changed in one place."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

Mutant = tuple[str, bytes]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.path}",)


def payloads(marker: str) -> list[str]:
    """Texts that make the file ``marker`` where they are evaluated, imported, called or written into code."""
    call = f"__import__('os').system('touch {marker}')"
    enum = json.dumps([{"__enum__": 1, "fqn": f"{call}:a", "name": "a"}])
    return [
        call,
        f"x\n{call}\n",
        f"x={call}, y",
        f'x", {call}, "y',
        f"a.b'] + [{call}] + ['",
        f"Symbol('s0') + {call}",
        f"(lambda: {call})()",
        f"L['x'].size()[0] >= {call}",
        json.dumps([1, {"type": "builtins.dict", "context": enum, "children_spec": []}]),
        "torch.os.system",
        "_operator.methodcaller",
        "torch.ops.aten.from_file.default",
        f"../../{marker}",
        "\x1b]0;owned\x07\x1b[2J[/]",
        "9" * 5_000,
        "Pow(Integer(9), Pow(Integer(9), Integer(99999999)))",
    ]


# --- any file ---


def damaged(content: bytes, rng: random.Random, n: int) -> Iterator[Mutant]:
    """Truncated, with flipped bits, with bytes put in, taken out, or made zero or 255."""
    for i in range(n):
        kind = i % 6
        at = rng.randrange(len(content))
        span = rng.choice([1, 2, 4, 8, 64, 512])
        if kind == 0:
            yield f"truncated at {at}", content[:at]
        elif kind == 1:
            flipped = bytearray(content)
            for _ in range(rng.choice([1, 1, 3, 20])):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            yield "bits flipped", bytes(flipped)
        elif kind == 2:
            yield f"bytes put in at {at}", content[:at] + rng.randbytes(span) + content[at:]
        elif kind == 3:
            yield f"bytes taken out at {at}", content[:at] + content[at + span :]
        elif kind == 4:
            yield f"255 at {at}", content[:at] + b"\xff" * span + content[at + span :]
        else:
            yield f"repeated at {at}", content[:at] + content[at : at + span] * 3 + content[at:]


# --- JSON ---


def leaves(value: Any, kinds: tuple[type, ...], at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of the texts or numbers in JSON, and of the keys of its dicts (ending in ``None``)."""
    if isinstance(value, dict):
        for key, x in value.items():
            if str in kinds:
                yield (*at, key, None)
            yield from leaves(x, kinds, (*at, key))
    elif isinstance(value, list):
        for i, x in enumerate(value):
            yield from leaves(x, kinds, (*at, i))
    elif type(value) in kinds:
        yield at


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with another leaf, or another key."""
    changed = json.loads(json.dumps(value))
    if at[-1] is None:
        *way, key, _ = at
        holder = changed
        for step in way:
            holder = holder[step]
        holder[str(new)] = holder.pop(key)
        return changed
    holder = changed
    for step in at[:-1]:
        holder = holder[step]
    holder[at[-1]] = new
    return changed


WRONG = [None, {}, [], [[]], -1, 2**63, 2**64, 1e308, True, "", {"as_int": 2**62}, 10**4_000]
BOMBS = {
    "deep list": "[" * 200_000,
    "deep list, closed": "[" * 100_000 + "]" * 100_000,
    "deep dict": '{"a":' * 100_000,
    "many lists": "[" + "[]," * 3_000_000 + "[]]",
    "many dicts": "[" + '{"a":{}},' * 1_500_000 + "{}]",
    "long number": "9" * 1_000_000,
    "not JSON": "{'a': 1}",
    "no text": "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
}


def _with_payloads(value: Any, marker: str, rng: random.Random, n: int) -> Iterator[tuple[str, Any]]:
    texts, numbers = list(leaves(value, (str,))), list(leaves(value, (int, float, bool)))
    ways = payloads(marker)
    for i in range(n):
        at, what = (texts[i // len(ways) % len(texts)], ways[i % len(ways)])
        yield f"payload {i % len(ways)} at {at}", put(value, at, what)
    for _ in range(n // 4):
        at, what = rng.choice(numbers or texts), rng.choice(WRONG)
        yield f"{str(what)[:20]} at {at}", put(value, at, what)


# --- zip archives ---


def unpack(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(parts: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a name that is there already
        for name, content in parts:
            archive.writestr(name, content)
    return buffer.getvalue()


def pt2_mutants(content: bytes, marker: str, rng: random.Random, n: int) -> Iterator[Mutant]:
    """Changed programs: texts, numbers, members, pickles, bombs."""
    parts = unpack(content)
    root = next(iter(parts)).partition("/")[0]
    model, weights = f"{root}/models/model.json", f"{root}/data/weights/model_weights_config.json"
    weight, samples = f"{root}/data/weights/weight_0", f"{root}/data/sample_inputs/model.pt"
    evil = io.BytesIO()
    import torch

    torch.save(Touch(marker), evil)
    for name, extra in {
        "pickled inputs": (samples, evil.getvalue()),
        "bare pickle": (samples, pickle.dumps(Touch(marker), protocol=2)),
        "legacy weights": (f"{root}/data/weights/model.pt", evil.getvalue()),
        "legacy constants": (f"{root}/data/constants/model.pt", evil.getvalue()),
        "script object": (f"{root}/data/constants/custom_obj_0", evil.getvalue()),
        "opaque object": (f"{root}/data/constants/opaque_obj_0", pickle.dumps(Touch(marker))),
        "compiled": (f"{root}/data/aotinductor/model/model.so", b"\x7fELF"),
        "absolute": (f"/{marker}", b"x"),
        "parent": (f"{root}/../../{marker}", b"x"),
        "another root": ("other/models/model.json", parts[model]),
        "nul": (f"{root}/models/model.json\0.txt", b"x"),
        "extra": (f"{root}/extra/notes.txt", b"x"),
    }.items():
        others = [(k, v) for k, v in parts.items() if k != extra[0]]
        yield name, pack([*others, extra])
        yield f"{name}, first", pack([extra, *others])
    for twice in (model, weights, samples, weight):
        for first in (True, False):
            bad = evil.getvalue() if twice == samples else b"{}"
            pair = [(twice, bad), (twice, parts[twice])]
            others = [(k, v) for k, v in parts.items() if k != twice]
            yield f"{twice} twice", pack([*(pair if first else pair[::-1]), *others])
    yield "packed", pack(list(parts.items()), zipfile.ZIP_DEFLATED)
    for bomb in (weight, model, samples):
        yield f"deflate bomb {bomb}", pack(list((parts | {bomb: bytes(2**28)}).items()), zipfile.ZIP_DEFLATED)
    stored = json.loads(parts[weights])
    first = next(iter(stored["config"]))
    meta = ("config", first, "tensor_meta")
    for name, changes in {
        "huge shape, no bytes": ({"sizes": [{"as_int": 10**11}], "strides": [{"as_int": 1}]}, b""),
        "huge shape": ({"sizes": [{"as_int": 10**11}], "strides": [{"as_int": 1}]}, parts[weight]),
        "expanded": ({"sizes": [{"as_int": 10**11}], "strides": [{"as_int": 0}]}, parts[weight]),
        "out of bounds": ({"storage_offset": {"as_int": 10**6}}, parts[weight]),
        "negative": ({"strides": [{"as_int": -1}, {"as_int": -1}]}, parts[weight]),
        "pickled": ({}, evil.getvalue()),
    }.items():
        config = put(stored, (*meta,), stored["config"][first]["tensor_meta"] | changes[0])
        if name == "pickled":
            config = put(config, ("config", first, "use_pickle"), True)
        yield name, pack(list((parts | {weights: json.dumps(config).encode(), weight: changes[1]}).items()))
    for name, bomb in BOMBS.items():
        for member in (model, weights):
            yield f"{name} in {member}", pack(list((parts | {member: bomb.encode("latin-1")}).items()))
    graph = json.loads(parts[model])
    nodes = graph["graph_module"]["graph"]["nodes"]
    for target in ("torch.os.system", "torch.hub.os.system", "torch.serialization.os.system"):
        call = json.loads(json.dumps(nodes[0]))
        call |= {"target": target, "name": "evil", "metadata": {}, "outputs": [{"as_none": True}]}
        call["inputs"] = [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]
        changed = put(graph, ("graph_module", "graph", "nodes"), [call, *nodes])
        yield f"a call of {target}", pack(list((parts | {model: json.dumps(changed).encode()}).items()))
    counter = put(graph, ("range_constraints",), {"u99999999999": {"min_val": 0, "max_val": 9}})
    yield "a high symbol", pack(list((parts | {model: json.dumps(counter).encode()}).items()))
    for member, share in ((model, 0.85), (weights, 0.15)):
        for name, changed in _with_payloads(json.loads(parts[member]), marker, rng, int(n * share)):
            yield f"{name} of {member}", pack(list((parts | {member: json.dumps(changed).encode()}).items()))
    nested = graph["graph_module"]["module_call_graph"][0]["signature"]
    for which in ("in_spec", "out_spec"):
        tree = json.loads(nested[which])
        for name, changed in _with_payloads(tree, marker, rng, n // 20):
            at = ("graph_module", "module_call_graph", 0, "signature", which)
            whole = json.dumps(put(graph, at, json.dumps(changed))).encode()
            yield f"{name} of {which}", pack(list((parts | {model: whole}).items()))


def json_mutants(content: bytes, marker: str, rng: random.Random, n: int) -> Iterator[Mutant]:
    """Changed JSON documents."""
    for name, bomb in BOMBS.items():
        yield name, bomb.encode("latin-1")
    for name, changed in _with_payloads(json.loads(content), marker, rng, n):
        yield name, json.dumps(changed).encode()


def safetensors_mutants(content: bytes, marker: str, rng: random.Random, n: int) -> Iterator[Mutant]:
    """Changed headers, also of the manifest in them."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def whole(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text + rest

    yield "a long header", struct.pack("<Q", 2**63) + content[8:]
    for name, bomb in BOMBS.items():
        yield name, whole(bomb.encode("latin-1"))
        inside = put(header, ("__metadata__",), {"dgating": bomb})
        yield f"{name} in the manifest", whole(json.dumps(inside).encode())
    empty = {"x": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}}
    yield "a huge empty tensor", struct.pack("<Q", 80) + json.dumps(empty).encode().ljust(80)
    for name, changed in _with_payloads(header, marker, rng, n // 2):
        yield name, whole(json.dumps(changed).encode())
    manifest = json.loads(header["__metadata__"]["dgating"])
    for name, changed in _with_payloads(manifest, marker, rng, n // 2):
        text = json.dumps(put(header, ("__metadata__", "dgating"), json.dumps(changed)))
        yield f"{name} of the manifest", whole(text.encode())


def onnx_mutants(content: bytes, marker: str, rng: random.Random, n: int) -> Iterator[Mutant]:
    """Changed models: texts, sizes, other files, bombs."""
    import onnx

    def field(number: int, inner: bytes) -> bytes:
        size, out = len(inner), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size]) + inner

    for name, inner in {
        "many nodes": field(1, b"") * 3_000_000,
        "many attributes": field(1, field(5, b"") * 3_000_000),
        "many inputs": field(1, field(1, b"") * 3_000_000),
        "packed numbers": field(5, field(7, bytes(30_000_000))),
        "many dims": field(5, field(1, bytes(20_000_000))),
    }.items():
        yield name, field(7, inner)
        yield f"{name}, behind a model", content + field(7, inner)
    deep = b""
    for _ in range(5_000):
        deep = field(1, field(5, field(6, deep)))
    yield "deep graphs", field(7, deep)
    for where in (
        "../../etc/passwd",
        "/etc/passwd",
        f"{marker}",
        "C:\\windows\\x",
        "a/../../b",
        "",
        "/dev/zero",
        "x\0y",
    ):
        model = onnx.ModelProto.FromString(content)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=where)
        tensor.external_data.add(key="length", value=str(2**40))
        yield f"external {where!r}", model.SerializeToString()
    ways = payloads(marker)
    for i in range(n):
        model = onnx.ModelProto.FromString(content)
        found = _onnx_leaves(model, i % 4 != 0)
        message, descriptor = found[i // len(ways) % len(found)] if i % 4 else rng.choice(found)
        if i % 4:
            text = ways[i % len(ways)].encode("utf-8", "replace")
            setattr(message, descriptor.name, text if descriptor.type == descriptor.TYPE_BYTES else text.decode())
        else:
            high = 2**62 if descriptor.type == descriptor.TYPE_INT64 else 2**31 - 1
            with contextlib.suppress(ValueError):  # no number of an enumeration
                setattr(message, descriptor.name, rng.choice([-1, 0, high, 999]))
        yield f"{descriptor.full_name} {i % len(ways)}", model.SerializeToString()


def _onnx_leaves(message: Any, texts: bool) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                found += _onnx_leaves(item, texts)
        elif isinstance(value, str | bytes if texts else int) and not isinstance(value, bool):
            found.append((message, field))
    return found


MUTANTS: dict[str, Callable[[bytes, str, random.Random, int], Iterator[Mutant]]] = {
    ".pt2": pt2_mutants,
    ".onnx": onnx_mutants,
    ".safetensors": safetensors_mutants,
    ".json": json_mutants,
}
