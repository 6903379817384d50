"""What the kernel's search for lost memory tells (mm/kmemleak.c): each leak with the module's function that asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from kbuild.outcome import Finding, Status, finding_id

MAX_EVIDENCE = 40
_OBJECT = re.compile(r"unreferenced object(?: \((?:percpu|phys)\))? 0x[0-9a-f]+ \(size (?P<size>\d{1,12})\):")
"""print_unreferenced()"""
_FRAME = re.compile(
    r"\s+(?:\[<\S+>\] )?(?:(?P<name>[\w.]{1,128})\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(?P<module>[\w-]{1,64})[^\]]*\])?"
    r"|0x(?P<address>[0-9a-f]{1,16}))\s*"
)
"""An address is of code that is gone: `%pS` of a module that was unloaded."""
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm)\b.*")

GONE = "a-module-that-is-gone"
"""In place of a function's name: an address of a module whose load failed, which nobody told the place of."""

Place = Callable[[int], Sequence[tuple[str, str]]]
"""From an address in a module that the order has loaded to the functions, with their modules, that were there."""


class Leak(msgspec.Struct, frozen=True):
    """One piece of memory that was lost."""

    size: int
    function: str | None
    """Of a module, the innermost one on the stack of who asked for it: `kvm_init`. None: no module did."""
    module: str | None
    lines: tuple[str, ...]
    """As the kernel told it, with names for what is gone."""


def read_leaks(lines: Iterable[str], place: Place) -> list[Leak]:
    """The leaks that the lines of /sys/kernel/debug/kmemleak tell of; what is no such line is passed over."""
    return [_leak(size, told, place) for size, told in _objects(lines)]


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    size, told = 0, list[str]()
    for line in lines:
        if found := _OBJECT.match(line):
            if told:
                yield size, told
            size, told = int(found["size"]), []
        if told or found:
            told.append(line)
    if told:
        yield size, told


def _leak(size: int, told: Sequence[str], place: Place) -> Leak:
    function: str | None = None
    module: str | None = None
    lines: list[str] = []
    for line in told:
        found = _FRAME.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        name, of = found["name"], found["module"]
        if found["address"]:
            # Where one module's init was, another one's code may be later: then both are named.
            there = place(int(found["address"], 16))
            name = "|".join(sorted({_SUFFIX.sub("", one) for one, _ in there})) or GONE
            of = "|".join(sorted({one for _, one in there})) or "?"
            line = f"    {name}() [{of}]" if there else line
        lines.append(line)
        if function is None and of is not None and name is not None:
            function, module = _SUFFIX.sub("", name), of
    return Leak(size, function, module, tuple(lines))


def findings_of_leaks(leaks: Iterable[Leak], order: str) -> list[Finding]:
    """A finding for each function of a module whose memory was lost, however often."""
    by_site: dict[tuple[str, str], list[Leak]] = {}
    for leak in leaks:
        if leak.module is not None and leak.function is not None:
            by_site.setdefault((leak.module, leak.function), []).append(leak)
    return [
        Finding(
            id=finding_id("load", "leak", f"{module}/{function}", order),
            status=Status.FAIL,
            message=f"memory that {function}() of {module} asked for is lost: {_how_much(some)}",
            evidence=some[0].lines[:MAX_EVIDENCE],
            module=module if module.isidentifier() else None,
        )
        for (module, function), some in by_site.items()
    ]


def _how_much(leaks: Sequence[Leak]) -> str:
    total = sum(leak.size for leak in leaks)
    return f"{total} bytes" if len(leaks) == 1 else f"{len(leaks)} times, {total} bytes"
