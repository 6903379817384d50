"""Protects records from floods: of too many lines the beginning and the end are kept, and what was cut is counted."""

from __future__ import annotations

import pytest

from kbuild.transcript import FIRST_CHARACTERS, FIRST_LINES, LAST_CHARACTERS, LAST_LINES, LogLine, bounded


def lines(count: int, size: int = 1) -> list[LogLine]:
    return [LogLine(f"{number}".rjust(size)) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, FIRST_LINES, FIRST_LINES + LAST_LINES])
def test_what_fits_is_whole(count: int) -> None:
    assert bounded(lines(count)) == lines(count)


@pytest.mark.parametrize(
    ("count", "size"), [(FIRST_LINES + LAST_LINES + 1, 1), (100_000, 1), (3000, 4096), (9, 1 << 18)]
)
def test_what_does_not_is_cut_in_the_middle_and_counted(count: int, size: int) -> None:
    every = lines(count, size)
    kept = bounded(every)
    (middle,) = (number for number, line in enumerate(kept) if line.source == "cut")
    first, last = kept[:middle], kept[middle + 1 :]
    assert kept[middle].text.startswith(f"[kvm-kbuild: {count - len(first) - len(last)} lines were cut here")
    assert [*first, *last] == [*every[: len(first)], *every[count - len(last) :]]
    assert len(first) <= FIRST_LINES
    assert len(last) <= LAST_LINES
    assert sum(len(line.text) for line in first) <= FIRST_CHARACTERS
    assert sum(len(line.text) for line in last) <= LAST_CHARACTERS


def test_what_was_missing_already_is_counted_too() -> None:
    assert [line.text[:20] for line in bounded(lines(2), 40)] == ["0", "1", "[kvm-kbuild: 40 line"]
