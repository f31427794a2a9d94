"""Find the attention and MLP units of `transformers` models by the names of their layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from benchmarks.zoo._zero import Axis, Units, cols, gated, neurons, rows, width


def find(model: nn.Module, names: str) -> Iterator[list[nn.Module]]:
    """For every submodule that has all of these (dotted) children: the children."""
    for module in model.modules():
        try:
            yield [module.get_submodule(name) for name in names.split()]
        except AttributeError:
            continue


def mlps(model: nn.Module, names: str = "fc1 fc2") -> list[Units]:
    """Hidden units between two layers: producer, consumers."""
    return [neurons(*found) for found in find(model, names)]


def gated_mlps(model: nn.Module, names: str = "gate_proj up_proj down_proj") -> list[Units]:
    """Hidden units of gated MLPs with separate gate and value layers."""
    return [gated(rows(gate), rows(up), cols(down), width(up)) for gate, up, down in find(model, names)]


def fused_gated_mlps(model: nn.Module, names: str = "gate_up_proj down_proj") -> list[Units]:
    """The same with one layer that makes gates first, then values."""
    found = [(both, down, width(both) // 2) for both, down in find(model, names)]
    return [gated(rows(both), rows(both, offset=n), cols(down), n) for both, down, n in found]


def experts(model: nn.Module) -> list[Units]:
    """Hidden units of stacked experts: ``gate_up_proj`` (E, 2I, H) and ``down_proj`` (E, H, I), each expert its own."""
    units = []
    for module in model.modules():
        if isinstance(up := getattr(module, "gate_up_proj", None), nn.Parameter):
            number, twice, _ = up.shape
            n, down = twice // 2, module.down_proj
            for e in range(number):
                gate, value = [Axis(up, 1, part=e)], [Axis(up, 1, offset=n, part=e)]
                units.append(gated(gate, value, [Axis(down, 2, part=e)], n))
    return units


def attention(model: nn.Module, dim: int, names: str = "q_proj k_proj v_proj o_proj") -> list[Units]:
    """Heads, or key-value groups with all their query heads, of separate projections with ``dim`` a head."""
    units = []
    for q, k, v, o in find(model, names):
        repeat = width(q) // width(k)
        gone = rows(q, block=dim * repeat) + rows(k, block=dim) + cols(o, block=dim * repeat)
        units.append(Units(width(k) // dim, [rows(v, block=dim)], gone))
    return units


def query_heads(model: nn.Module, dim: int, names: str = "q_proj k_proj o_proj") -> list[Units]:
    """Single query heads, the same number from every key-value group; key and value stay."""
    return [
        Units(width(q) // dim, [cols(o, block=dim)], rows(q, block=dim), blocks=width(k) // dim)
        for q, k, o in find(model, names)
    ]


def fused_attention(model: nn.Module, dim: int, groups: int, names: str = "qkv_proj o_proj") -> list[Units]:
    """Key-value groups of a fused projection that makes all queries, then all keys, then all values."""
    units = []
    for qkv, o in find(model, names):
        repeat = width(qkv) // (dim * groups) - 2
        start = repeat * groups * dim
        gone = rows(qkv, block=dim * repeat) + rows(qkv, offset=start, block=dim) + cols(o, block=dim * repeat)
        units.append(Units(groups, [rows(qkv, offset=start + groups * dim, block=dim)], gone))
    return units


def interleaved_attention(model: nn.Module, dim: int, groups: int, names: str) -> list[Units]:
    """Key-value groups of a fused projection that makes queries, key and value group by group."""
    units = []
    for qkv, o in find(model, names):
        size = width(qkv) // groups
        value = rows(qkv, offset=size - dim, block=dim, stride=size)
        units.append(Units(groups, [value], rows(qkv, block=size) + cols(o, block=size - 2 * dim)))
    return units


def interleaved_query_heads(model: nn.Module, dim: int, groups: int, names: str) -> list[Units]:
    """Single query heads of such a projection, the same number from every key-value group."""
    units = []
    for qkv, o in find(model, names):
        size = width(qkv) // groups
        per = size // dim - 2
        units.append(Units(per * groups, [cols(o, block=dim)], rows(qkv, block=dim, runs=(per, size)), blocks=groups))
    return units


def together(units: list[Units]) -> list[Units]:
    """One choice for all layers, where something without parameters ties their heads to each other."""
    first = units[0]
    ways = [[axis for u in units for axis in u.ways[0]]]
    return [Units(first.count, ways, [axis for u in units for axis in u.gone], first.blocks, each=len(units))]


def fused_query_heads(model: nn.Module, dim: int, groups: int, names: str = "qkv_proj o_proj") -> list[Units]:
    """Single query heads of such a projection, the same number from every key-value group."""
    found = find(model, names)
    return [
        Units(width(qkv) // dim - 2 * groups, [cols(o, block=dim)], rows(qkv, block=dim), groups) for qkv, o in found
    ]
