"""Protects the judgment on growth: a small steady loss is found, and scatter or a single step is not taken for one."""

from __future__ import annotations

import random

import pytest

from kbuild.load.drift import drifts, sample_of
from kbuild.load.protocol import Items
from kbuild.load.trend import ALPHA, MIN_SAMPLES, growth

CYCLES = 20


@pytest.mark.parametrize("cycles", [MIN_SAMPLES, CYCLES, 100])
def test_one_more_each_time_is_found(cycles: int) -> None:
    found = growth([116 + cycle for cycle in range(cycles)])
    assert found is not None
    assert (found.slope, found.at_least) == (1, 1)


def test_a_page_each_time_is_found_under_scatter() -> None:
    draw = random.Random(11)
    for _ in range(200):
        found = growth([1070 + cycle + draw.choice((0, 0, 0, 1, 2, 4)) for cycle in range(CYCLES)])
        assert found is not None
        assert found.slope == pytest.approx(1, abs=0.4)
        assert 0 < found.at_least <= found.slope


@pytest.mark.parametrize("at", [0, -1])
def test_one_odd_sample_hides_no_growth(at: int) -> None:
    samples = [100 + cycle for cycle in range(30)]
    samples[at] = 200 if at == 0 else 100
    assert growth(samples) is not None


@pytest.mark.parametrize(
    "samples",
    [
        [274] * CYCLES,
        [*range(CYCLES, 0, -1)],
        # A pool that fills in the beginning, and what is kept from some moment on.
        [40, 44, 47, 48, *([49] * 16)],
        *([278] * at + [279] * (CYCLES - at) for at in range(1, CYCLES)),
        # Now one slab and now another one.
        [17, 18] * (CYCLES // 2),
        [116 + cycle for cycle in range(MIN_SAMPLES - 1)],
        [],
    ],
)
def test_what_does_not_go_on_is_no_growth(samples: list[int]) -> None:
    assert growth(samples) is None


def test_scatter_alone_seldom_seems_to_grow() -> None:
    # Kendall's S is the same for whatever is drawn, so these rows stand for all that only scatter.
    draw = random.Random(6)
    rows = ([draw.randrange(100) for _ in range(CYCLES)] for _ in range(5000))
    assert sum(growth(row) is not None for row in rows) <= 5000 * ALPHA * 4


def test_of_what_grows_the_total_is_told_where_nothing_else_is() -> None:
    def samples(**rows: list[int]) -> list[str]:
        pairs = [[f"{name.replace('__', '/')} {rows[name][at]}" for name in rows] for at in range(CYCLES)]
        return [
            one.name for one in drifts([sample_of([Items(id=1, what="memory", items=tuple(items))]) for items in pairs])
        ]

    grows, stays = [*range(CYCLES)], [5] * CYCLES
    assert samples(pages=grows, slab__kmalloc=stays) == ["pages"]
    assert samples(pages=grows, SUnreclaim=grows, slab__kmalloc=grows) == ["slab/kmalloc"]
    assert samples(pages=stays, slab__kmalloc=stays) == []


def test_odd_numbers_of_a_guest_are_left_out() -> None:
    parts = [Items(id=1, what="memory", items=("pages 12", "pages", "x -3", "y 1e9", "z " + "9" * 40, ""))]
    assert sample_of(parts) == {"pages": 12}
    assert drifts([]) == []
