"""Settings of module parameters: which combinations an order is run with, and what each run is called."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from kbuild.load.orders.conditions import Facts, holds
from kbuild.load.orders.format import Order, kernel_name, written

Setting = Mapping[str, str]
"""Of `kvm.tdp_mmu`, as the kernel's names are, to the value that is given."""


def axes(order: Order, facts: Facts) -> dict[str, tuple[str, ...]]:
    """Each parameter of a resolved order's matrix with its values, as far as the matrix is for this host.

    A parameter may be one that this kernel does not have.
    """
    return {
        f"{kernel_name(table.module)}.{kernel_name(name)}": tuple(map(written, values))
        for table in order.matrix
        if holds(table.when, facts)
        for name, values in table.params.items()
    }


def combinations(axes: Mapping[str, Sequence[str]], cover: str) -> list[Setting]:
    """The settings that are run: `all`, or so many that each pair of values of two parameters is in one (`pairs`)."""
    rows = _pairs([*axes.values()]) if cover == "pairs" else itertools.product(*axes.values())
    return [dict(zip(axes, row, strict=True)) for row in rows]


def said(setting: Setting) -> str:
    """A setting as the kernel's command line would have it, and as runs are called: `kvm.tdp_mmu=0,kvm_amd.npt=1`."""
    return ",".join(f"{name}={value}" for name, value in setting.items())


def _pairs(axes: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows so that any two values of two axes are together in at least one; the same rows for the same axes.

    Greedy: each row begins with the first pair that is still missing, and takes of each other axis the value that makes
    up most of the missing pairs, and of several the one that was taken least. Of a dozen of switches it makes 10 rows.
    """
    if len(axes) < 2:
        return list(itertools.product(*axes))
    missing = {
        ((one, a), (two, b)): None
        for one, two in itertools.combinations(range(len(axes)), 2)
        for a in range(len(axes[one]))
        for b in range(len(axes[two]))
    }
    taken: Counter[tuple[int, int]] = Counter()
    rows: list[tuple[str, ...]] = []
    while missing:
        row: dict[int, int] = dict(next(iter(missing)))

        def gain(axis: int, value: int, row: Mapping[int, int] = row) -> tuple[int, int]:
            """How good a value is in this row."""
            return sum(_pair((axis, value), other) in missing for other in row.items()), -taken[axis, value]

        for axis, values in enumerate(axes):
            if axis not in row:
                row[axis] = max(range(len(values)), key=partial(gain, axis))
        taken.update(row.items())
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(values[row[axis]] for axis, values in enumerate(axes)))
    return rows


def _pair(one: tuple[int, int], two: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (one, two) if one < two else (two, one)
