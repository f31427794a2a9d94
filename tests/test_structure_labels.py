"""The pure parts of the structure engine against brute force: labels, factors, slices, known values."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgating.structure._factors import (
    Factor,
    combine,
    concatenate,
    narrow,
    numel,
    regroup,
    reshape,
    reshape_factor,
    seal,
    simplify,
    single,
    take,
    unroute,
)  # fmt: skip
from dgating.structure._info import Info
from dgating.structure._labels import FIXED, Labels
from dgating.structure._sizes import Slice, apply, new_shape, slices_of
from dgating.structure._solve import Solution, irregular
from dgating.structure.rules import _values

sizes = st.integers(1, 4)
shapes = st.lists(sizes, min_size=1, max_size=4).map(tuple)

# --- labels ---


@given(st.data())
def test_labels_are_a_partition(data):
    """Unions and fixings in any order, against sets."""
    labels = Labels()
    n = numel(labels.fresh(data.draw(shapes)).shape)
    classes = [{i} for i in range(n + 1)]
    reasons = [{"not a unit"}, *(set() for _ in range(n))]
    ids = st.lists(st.integers(0, n), min_size=1, max_size=5)
    for step in range(data.draw(st.integers(0, 8))):
        a = data.draw(ids)
        if data.draw(st.booleans()):
            labels.fix(np.array(a), f"reason {step}")
            for i in a:
                for j in classes[i]:
                    reasons[j] = reasons[j] or {f"reason {step}"}
        else:
            b = data.draw(st.lists(st.integers(0, n), min_size=len(a), max_size=len(a)) | ids.map(lambda x: x[:1]))
            labels.union(np.array(a), np.array(b))
            for i, j in zip(a, b * (len(a) if len(b) == 1 else 1), strict=True):
                merged = classes[i] | classes[j]
                why = reasons[i] | reasons[j]
                for k in merged:
                    classes[k], reasons[k] = merged, why
    found = labels.find(np.arange(n + 1))
    assert found.tolist() == [min(c) for c in classes]
    assert labels.fixed(np.arange(n + 1)).tolist() == [bool(r) for r in reasons]
    for i in range(n + 1):
        assert labels.reason(i) in (reasons[i] or {""})


def test_labels_keep_the_first_reason():
    labels = Labels()
    ids = labels.fresh((3,))
    labels.fix(ids[:1], "first")
    labels.fix(ids, "second")
    assert [labels.reason(i) for i in ids] == ["first", "second", "second"]
    assert len(labels) == 4
    labels.union(ids[:1], np.array([FIXED]))
    assert labels.reason(int(ids[0])) in ("first", "not a unit")


def test_chains_are_merged_in_few_steps():
    """Each label meets its neighbour, as in ``x[1:] + x[:-1]``: minutes if parents were followed one by one."""
    labels = Labels()
    ids = labels.fresh((30_000,))
    start = time.process_time()
    labels.union(ids[:-1], ids[1:])
    assert np.array_equal(labels.find(ids), np.full(ids.shape, ids[0]))
    assert time.process_time() - start < 1


# --- moving data ---


@st.composite
def reshapes(draw):
    """Two shapes of the same size, and an array that broadcasts to the first."""
    primes = draw(st.lists(st.sampled_from([1, 1, 2, 2, 3]), min_size=1, max_size=5))

    def shape():
        out = [1]
        for p in primes:
            if draw(st.booleans()):
                out.append(p)
            else:
                out[-1] *= p
        return tuple(out[draw(st.integers(0, 1)) if out[0] == 1 and len(out) > 1 else 0 :])

    old, new = shape(), shape()
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 9, old)
    for axis in range(len(old)):
        if draw(st.booleans()):
            array = array.take([0], axis)
    return old, new, array


@given(reshapes())
def test_reshape_is_numpys(case):
    old, new, array = case
    expected = np.broadcast_to(array, old).reshape(new)
    for result in (reshape(array, old, new), reshape(torch.from_numpy(array), old, new).numpy()):
        assert all(n in (1, m) for n, m in zip(result.shape, new, strict=True))
        np.testing.assert_array_equal(np.broadcast_to(result, new), expected)
    moved = reshape_factor(Factor(np.stack([array, array + 1])), old, new)
    np.testing.assert_array_equal(np.broadcast_to(moved.ids, (2, *new)), np.stack([expected, expected + 1]))


@given(reshapes())
def test_regroup_cuts_both_shapes_into_runs_of_the_same_size(case):
    old, new, _ = case
    runs = regroup(old, new)
    assert [i for left, _ in runs for i in left] == list(range(len(old)))
    assert [j for _, right in runs for j in right] == list(range(len(new)))
    for left, right in runs:
        assert math.prod(old[i] for i in left) == math.prod(new[j] for j in right)


def test_reshape_expands_no_more_than_it_must():
    ids = np.arange(64).reshape(1, 1, 64)
    assert reshape(ids, (1000, 7, 64), (1000, 7, 4, 16)).shape == (1, 1, 4, 16)
    assert reshape(ids, (1000, 7, 64), (7000, 64)).shape == (1, 64)
    assert reshape(ids, (1000, 7, 64), (1000, 448)).shape == (1, 448)


@given(shapes, st.data())
def test_narrow_and_take(shape, data):
    array = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, shape)
    small = narrow(array)
    np.testing.assert_array_equal(np.broadcast_to(small, shape), array)
    for axis in range(len(shape)):
        changes = not np.array_equal(np.broadcast_to(array.take([0], axis), shape), array)
        assert (small.shape[axis] > 1) == changes
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=3))
    picked = take(Factor(small[None]), axis, index).ids[0]
    wide = array.take(index, axis)
    np.testing.assert_array_equal(np.broadcast_to(picked, wide.shape), wide)


@given(shapes, st.data())
def test_concatenate_fills_what_is_missing(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    parts, full, widths = [], [], []
    for i in range(data.draw(st.integers(1, 3))):
        width = data.draw(sizes)
        whole = tuple(width if a == axis else n for a, n in enumerate(shape))
        array = narrow(np.random.default_rng(i).integers(1, 3, whole))
        missing = i > 0 and data.draw(st.booleans())
        parts.append(None if missing else array)
        full.append(np.full(whole, FIXED) if missing else np.broadcast_to(array, whole))
        widths.append(width)
    result = concatenate(parts, widths, axis, FIXED)
    expected = np.concatenate(full, axis)
    np.testing.assert_array_equal(np.broadcast_to(result, expected.shape), expected)


# --- factors ---


def factors_of(draw, labels, shape, most=2):
    """Random factors: over one axis or two, with labels that repeat."""
    found, free = [], [a for a, n in enumerate(shape) if n > 1]
    for _ in range(draw(st.integers(0, most))):
        axes = draw(st.lists(st.sampled_from(free), min_size=1, max_size=2, unique=True)) if free else []
        if not axes:
            break
        free = [a for a in free if a not in axes]
        ids = labels.fresh([n if a in axes else 1 for a, n in enumerate(shape)])[None]
        if draw(st.booleans()):  # two of them are one unit
            flat = ids.reshape(-1)
            labels.union(flat[:1], flat[draw(st.integers(0, flat.size - 1)) :][:1])
        factor = simplify(labels, Factor(ids))
        if factor is not None:
            found.append(factor)
    return found


def solution_of(labels, dead):
    return Solution(SimpleNamespace(labels=labels), dead[labels.find(np.arange(len(labels)))], {})


def revived(labels, infos, dead):
    """Whole classes, none of them fixed, with what has to come back so that every tensor stays a rectangle."""
    root = labels.find(np.arange(len(labels)))
    dead = dead[root] & ~labels.fixed(root)
    while True:
        back = [
            ids
            for info in infos
            for ids, _ in irregular([narrow(labels.find(f.ids)) for f in info.factors], dead[root])
        ]
        if not back:
            return dead
        for ids in back:
            dead[labels.find(ids)] = False
        dead = dead[root]


def entries_left(labels, info, dead):
    kept = np.ones(info.shape, dtype=bool)
    for f in info.factors:
        kept &= np.broadcast_to(~dead[labels.find(f.ids)][0], info.shape)
    return kept


def dead_labels(draw, labels):
    seed, share = draw(st.integers(0, 999)), draw(st.floats(0.1, 0.9))
    return np.random.default_rng(seed).random(len(labels)) < share


@given(st.data())
def test_what_stays_is_a_rectangle(data):
    """After reviving, cutting axis by axis takes out exactly the entries with a dead label, in their order."""
    labels = Labels()
    shape = data.draw(shapes)
    info = Info(shape, factors_of(data.draw, labels, shape))
    dead = revived(labels, [info], dead_labels(data.draw, labels))
    solution = solution_of(labels, dead)
    tensor = torch.arange(numel(shape)).reshape(shape)
    left = apply(tensor, slices_of(solution, info))
    assert tuple(left.shape) == new_shape(solution, info)
    assert left.reshape(-1).tolist() == tensor.numpy()[entries_left(labels, info, dead)].tolist()
    assert left.numel() > 0


@given(st.data())
def test_reviving_brings_back_no_more_than_rows_need(data):
    """A rectangle is left alone."""
    labels = Labels()
    rows, columns = data.draw(sizes.filter(lambda n: n > 1)), data.draw(sizes.filter(lambda n: n > 1))
    ids = labels.fresh((1, rows, columns))
    keep = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any))
    along = data.draw(st.lists(st.booleans(), min_size=columns, max_size=columns).filter(any))
    dead = np.zeros(len(labels), dtype=bool)
    dead[ids[0]] = ~np.outer(keep, along)
    assert irregular([ids], dead) == []


@given(st.data())
def test_elementwise_results_are_cut_like_their_operands(data):
    """Whatever leaves: the cut operands still fit each other, and give the cut result."""
    labels = Labels()
    out = data.draw(shapes)
    operands = []
    for _ in range(data.draw(st.integers(1, 3))):
        lead = data.draw(st.integers(0, len(out) - 1)) if operands else 0
        shape = tuple(1 if data.draw(st.booleans()) and operands else n for n in out[lead:])
        operands.append(Info(shape, factors_of(data.draw, labels, shape)))
    result = Info(out, combine(labels, [(i.shape, i.factors) for i in operands], out, "they meet"))
    infos = [
        Info(i.shape, [g for f in i.factors if (g := simplify(labels, f)) is not None]) for i in [*operands, result]
    ]
    dead = revived(labels, infos, dead_labels(data.draw, labels))
    solution = solution_of(labels, dead)
    tensors = [torch.arange(numel(i.shape)).reshape(i.shape) * 100**k for k, i in enumerate(operands)]
    cut = [apply(t, slices_of(solution, i)) for t, i in zip(tensors, infos, strict=False)]
    torch.testing.assert_close(sum(cut), apply(sum(tensors), slices_of(solution, infos[-1])), rtol=0, atol=0)


@given(st.data())
def test_sealed_axes_stay_whole(data):
    labels = Labels()
    shape = data.draw(shapes)
    factors = factors_of(data.draw, labels, shape, 1)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    for f in factors:
        sealed = seal(labels, f, axes, "no single one")
        ids = labels.find(f.ids)
        for axis in axes:
            assert sealed is None or not sealed.depends(axis)
            line = ids.take([0], axis + 1)
            assert np.array_equal(np.broadcast_to(line, ids.shape), ids) or labels.fixed(ids).all()
        if not any(f.depends(a) for a in axes):
            assert sealed is f
        if sealed is None:
            assert labels.fixed(ids).all()


def test_a_unit_that_is_a_whole_axis_is_fixed():
    labels = Labels()
    ids = labels.fresh((3,))
    labels.union(ids[:1], ids)
    assert simplify(labels, single(ids, 1, 2)) is None
    assert labels.reason(int(ids[0])) == "it is the whole of an axis"


def test_rows_of_experts_forget_their_experts():
    labels = Labels()
    route = object()
    factor = Factor(labels.fresh((3, 1, 4)), route)
    merged = unroute(labels, factor)
    assert merged is not None
    assert (merged.ids.shape, merged.route) == ((1, 1, 4), None)
    assert np.array_equal(labels.find(factor.ids), np.broadcast_to(merged.ids, (3, 1, 4)))


# --- slices ---


@st.composite
def slices(draw):
    shape = draw(st.lists(sizes, min_size=1, max_size=3).map(tuple))
    axis = draw(st.integers(0, len(shape) - 1))
    rows = draw(st.sampled_from([None, *(a for a in range(len(shape)) if a != axis)]))
    count = draw(st.integers(1, shape[axis]))
    several = 1 if rows is None else shape[rows]
    index = [sorted(draw(st.permutations(range(shape[axis])))[:count]) for _ in range(several)]
    return shape, Slice(axis, torch.tensor(index[0] if rows is None else index), rows)


@given(slices())
def test_a_slice_takes_its_indices(case):
    shape, s = case
    tensor = torch.arange(numel(shape)).reshape(shape)
    result = s.apply(tensor)
    for position in np.ndindex(*result.shape):
        keep = s.keep if s.row is None else s.keep[position[s.row]]
        source = list(position)
        source[s.axis] = int(keep[position[s.axis]])
        assert result[position] == tensor[tuple(source)]


@given(slices())
def test_a_slice_survives_json(case):
    shape, s = case
    again = Slice.from_json(json.loads(json.dumps(s.to_json())))
    assert (again.axis, again.row) == (s.axis, s.row)
    tensor = torch.randn(shape)
    assert torch.equal(again.apply(tensor), s.apply(tensor))


@pytest.mark.parametrize(
    "data",
    [
        {"axis": 0, "keep": []},
        {"axis": 0, "keep": [[0]]},
        {"axis": 0, "keep": [0], "row": 1},
        {"axis": "0", "keep": [0]},
        {"axis": 0, "keep": 3},
    ],
)
def test_a_damaged_slice_is_refused(data):
    with pytest.raises(ValueError, match="a slice of axis"):
        Slice.from_json(data)


# --- known values ---

UNKNOWN = float("nan")
entries = st.lists(st.sampled_from([0.0, 1.0, -2.0, 0.5, UNKNOWN]), min_size=3, max_size=3)
values = st.none() | entries.map(lambda x: torch.tensor(x, dtype=torch.float64))


@given(values, values, st.sampled_from([torch.add, torch.maximum, torch.atan2, torch.mul]), st.integers(0, 99))
def test_known_values_hold_for_every_completion(a, b, f, seed):
    """Whatever the unknown entries are, a number in the result is the number that comes out."""
    result = _values.multiply(a, b) if f is torch.mul else _values.evaluate(f, [a, b])
    generator = torch.Generator().manual_seed(seed)

    def complete(v):
        fill = torch.randn(3, generator=generator, dtype=torch.float64)
        return fill if v is None else torch.where(v.isnan(), fill, v)

    actual = f(complete(a), complete(b))
    if result is not None:
        known = ~result.isnan().expand(3)
        assert torch.equal(result.expand(3)[known], actual[known])
        assert known.any()


@given(values)
def test_zeros_alone(v):
    zeros = _values.zero_only(v)
    expected = [] if v is None else [i for i in range(3) if v[i] == 0]
    found = [] if zeros is None else [i for i in range(3) if zeros[i] == 0]
    assert found == expected
    assert zeros is None or bool((zeros.isnan() | (zeros == 0)).all())


def test_infinities_are_numbers():
    """Not the largest float: a constant that overflows stays what it is."""
    result = _values.evaluate(lambda x: 1e-300 * x, [torch.tensor([float("inf"), -float("inf"), UNKNOWN])])
    assert result is not None
    assert result[:2].tolist() == [float("inf"), -float("inf")]
    assert result[2].isnan()


@given(st.integers(1, 3), st.data())
def test_value_along_an_axis(ndim, data):
    """A number where every entry beside it is that number."""
    shape = tuple(data.draw(sizes) for _ in range(ndim))
    value = torch.tensor(np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, shape)).double()
    value[value == 0] = UNKNOWN if data.draw(st.booleans()) else 0.0
    axis = data.draw(st.integers(-ndim, ndim - 1))
    found = Info(shape, value=torch.from_numpy(narrow(value.numpy()))).value_along(axis)
    lines = value.movedim(axis, 0).reshape(shape[axis], -1)
    expected = [float(line[0]) if bool((line == line[0]).all()) else UNKNOWN for line in lines]
    np.testing.assert_array_equal(found.numpy(), np.array(expected))
