"""What of the kernel's memory grows from one measurement to the next: rows of `memory` answers, judged. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kbuild.load.protocol import Items
from kbuild.load.trend import Growth, growth

TOTALS = frozenset({"pages", "SUnreclaim"})
"""They grow with whatever else grows, and count where nothing else does."""
UNITS = {"pages": "pages"}
_ITEM = re.compile(r"(\S{1,300}) ([0-9]{1,18})")

Sample = Mapping[str, int]
"""What there is of each: `slab/kmalloc-64` in objects, `pages` in pages, the others in KiB."""


@dataclass(frozen=True)
class Drift:
    """Something that grows."""

    name: str
    values: tuple[int, ...]
    growth: Growth

    def __str__(self) -> str:
        unit = "objects" if self.name.startswith("slab/") else UNITS.get(self.name, "KiB")
        sure = f"at least {self.growth.at_least:.2g} for sure"
        return f"{self.name} grows by {self.growth.slope:.2g} {unit} each time ({sure}), over {len(self.values)} times"


def sample_of(parts: Iterable[Items]) -> Sample:
    """The numbers of one `memory`; what is none is left out."""
    found = (_ITEM.fullmatch(item) for part in parts if part.what == "memory" for item in part.items)
    return {match[1]: int(match[2]) for match in found if match}


def drifts(samples: Sequence[Sample]) -> list[Drift]:
    """What grows, of all that each of the samples has."""
    names = sorted(set.intersection(*(set(sample) for sample in samples))) if samples else []
    rows = {name: tuple(sample[name] for sample in samples) for name in names}
    grown = {name: found for name, row in rows.items() if (found := growth(row))}
    counted = grown.keys() - TOTALS or grown.keys()
    return [Drift(name, rows[name], grown[name]) for name in sorted(counted)]
