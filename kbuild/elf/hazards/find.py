"""Hazards of a module set: objects that init code writes after they were read, those that matter most first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Run, Runs, uncollected
from kbuild.elf.contents import MalformedError
from kbuild.elf.hazards.objects import Object, Objects
from kbuild.elf.hazards.watch import Access, Pair, Watch
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import stem
from kbuild.elf.places import Places
from kbuild.errors import UserError

LEVELS = (
    "parameters and __ro_after_init: read by one function, written later by another one",
    "parameters and __ro_after_init: read, and written later by the same function",
    "other objects: read by one function, written later by another one",
    "other objects: read, and written later by the same function",
    "nothing else was done between the read and the write, so the read can only have decided the write",
    "counts, locks and flags that others look at, flags of what is said once, data of each CPU",
)
"""Of hazards, the first one is 1."""
KEY = ("module", "entry", "object", "reader", "writer")
"""By which a hazard is the same one in two builds."""


def find_hazards(modules: ModuleSet) -> dict[str, Any]:
    """`found`, ranked; `levels`, what the ranks mean; `not_followed`, places behind which something is not known.

    Raises UserError for a damaged module.
    """
    try:
        runs = Runs(Code(Program(modules)))
        names = _order(modules, [name for name in runs.program.modules if runs.entry(name, "init") is not None])
        watches = [Watch(runs.program) for _ in names]
        jobs = [Job(name, "init", watch) for name, watch in zip(names, watches, strict=True)]
        with uncollected():
            done = runs.settle(jobs)
        teller, asked = _Teller(runs.program), zip(jobs, watches, strict=True)
        found = [hazard for job, watch in asked for hazard in teller.hazards(job, watch.pairs())]
    except MalformedError as error:
        raise UserError(f"hazards cannot be looked for in these modules: {error}") from None
    # Stable: within a level, the vendor modules' come first, as their runs do.
    found.sort(key=lambda one: one["level"])
    return {"found": found, "levels": LEVELS, "not_followed": sorted(set(_not_followed(runs.program, done)))}


def differences(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hazards that came, and those that went; each with `change`."""
    old, new = ({tuple(one[key] for key in KEY): one for one in side} for side in (before, after))
    came = [{"change": "came", **one} for key, one in new.items() if key not in old]
    return came + [{"change": "went", **one} for key, one in old.items() if key not in new]


def _order(modules: ModuleSet, names: Iterable[str]) -> list[str]:
    """Modules that others need come last."""
    needed = {name: sum(name in modules.dependencies(other) for other in modules.modules.values()) for name in names}
    return sorted(needed, key=lambda name: (needed[name], name))


def _not_followed(program: Program, runs: Iterable[Run | None]) -> Iterator[str]:
    for run in runs:
        trouble = run.flow.trouble if run is not None else None
        for address in (*trouble.cut, *trouble.unresolved) if trouble is not None else ():
            name = program.name(address)
            yield f"{name.module}: {name}" if name is not None else f"{address:#x}"


class _Teller:
    """Says of pairs of one program what they are, by names."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._objects = Objects(program)
        self._places = Places(program)

    def hazards(self, job: Job, pairs: Iterable[Pair]) -> list[dict[str, Any]]:
        """One for each object, function that reads, and function that writes."""
        groups: dict[tuple[str | None, str, str, str], list[tuple[int, Pair, Object]]] = {}
        for pair in pairs:
            about = self._objects.at(max(pair.read.start, pair.write.start))
            if about is None or not _may_change(pair, about):
                continue
            reader, writer = (self._function(one.function) for one in (pair.read, pair.write))
            level = _level(pair, about, same=reader == writer)
            groups.setdefault((about.module, about.name, reader, writer), []).append((level, pair, about))
        return sorted(
            (self._hazard(job, key[2], key[3], group) for key, group in groups.items()),
            key=lambda one: (one["level"], one["of"] is None, one["of"] == job.module, *(one[key] for key in KEY)),
        )

    def _hazard(self, job: Job, reader: str, writer: str, group: Sequence[tuple[int, Pair, Object]]) -> dict[str, Any]:
        level, pair, about = min(group, key=_first)
        return {
            "module": job.module,
            "entry": job.entry,
            "object": about.name,
            "of": about.module,
            "kind": about.kind,
            "parameter": about.parameter,
            "section": about.section,
            "offsets": sorted({one.offset for _, _, one in group}),
            "level": level,
            "reader": reader,
            "writer": writer,
            "read": self._access(pair.read),
            "write": self._access(pair.write),
        }

    def _access(self, one: Access) -> dict[str, Any]:
        place = self._places.told
        name = self._program.name(one.value) if one.value is not None else None
        value = one.value if name is None else str(name)
        return {"at": place(one.site), "chain": [place(site) for site in one.chain], "value": value}

    def _function(self, address: int) -> str:
        name = self._program.name(address)
        return stem(name.symbol) if name is not None else f"{address:#x}"


def _first(one: tuple[int, Pair, Object]) -> tuple[int, int, int, int, int]:
    """Of several pairs, the one to be shown: that which counts most, on the shortest way."""
    level, pair, _ = one
    chains = len(pair.read.chain) + len(pair.write.chain)
    return level, chains, pair.read.site, pair.write.site, pair.read.value is None


def _may_change(pair: Pair, about: Object) -> bool:
    """Whether what is written can be another value than the one that was read. A parameter may have any value."""
    if about.kind == "parameter" or pair.read.value is None:
        return True
    return pair.read.value != pair.write.value or (pair.read.start, pair.read.end) != (pair.write.start, pair.write.end)


def _level(pair: Pair, about: Object, *, same: bool) -> int:
    """Its place in `LEVELS`."""
    if about.kind in ("once", "per-cpu") or (pair.read.shared and pair.write.shared):
        return 6
    if not pair.used:
        return 5
    return (1 if about.kind in ("parameter", "ro_after_init") else 3) + same
