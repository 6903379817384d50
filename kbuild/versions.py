"""Kernel versions and ranges of them, as profiles, orders and signatures write them."""

from __future__ import annotations

import re

_VERSION = re.compile(r"\d+(?:\.\d+)*")
_RANGE = re.compile(r"\s*(?:(?P<low>\d+(?:\.\d+)*)?\s*-\s*(?P<high>\d+(?:\.\d+)*)?|(?P<only>\d+(?:\.\d+)*))?\s*")


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a kernel release: `6.1.192-kvm+` is (6, 1, 192).

    Raises ValueError where there are none.
    """
    match = _VERSION.match(text)
    if match is None:
        raise ValueError(f"'{text}' is not a kernel version")
    return tuple(int(part) for part in match.group().split("."))


class KernelRange:
    """An inclusive range, written `6.1 - 7.2`, `5.19 -`, `- 6.2` or `6.1`; empty: all kernels.

    A version is compared to the length of the bound, so 6.2.16 is in `- 6.2`. Raises ValueError
    where the text is no range. (No dataclass: msgspec would read those as tables, and this is text.)
    """

    __slots__ = ("high", "low")

    def __init__(self, text: str = "") -> None:
        match = _RANGE.fullmatch(text)
        if match is None or text.strip() == "-":
            raise ValueError(f"'{text}' is not a kernel range: write '6.1 - 7.2', '5.19 -', '- 6.2' or '6.1'")
        low, high = (parse_version(bound) if bound else () for bound in match.group("low", "high"))
        if match["only"]:
            low = high = parse_version(match["only"])
        if low and high and low > high:
            raise ValueError(f"kernel range '{text}' ends before it begins")
        self.low: tuple[int, ...] = low
        self.high: tuple[int, ...] = high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelRange) and (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    def __contains__(self, kernel: str) -> bool:
        version = parse_version(kernel)
        return version[: len(self.low)] >= self.low and (not self.high or version[: len(self.high)] <= self.high)

    def overlaps(self, other: KernelRange) -> bool:
        """Whether a version can be in both."""

        def before(one: KernelRange, two: KernelRange) -> bool:
            return bool(one.high and two.low) and two.low[: len(one.high)] > one.high

        return not before(self, other) and not before(other, self)

    def __str__(self) -> str:
        low, high = (".".join(map(str, bound)) for bound in (self.low, self.high))
        return low if low == high else f"{low} - {high}".strip()
