"""A step that does not come back: what samples of the CPU and the kernel's own lockup reports say about it.

A time limit alone never blames the kernel, and never acquits it. It is to blame where it was seen: in the same
function of a module again and again, halted with nothing that could wake it, or named by itself in a lockup report.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kbuild.dmesg.classify import Match
from kbuild.dmesg.record import Record
from kbuild.dmesg.signatures import Severity
from kbuild.elf.text import Location, ModuleText, locate
from kbuild.hosts.cpu import KERNEL, CpuSample, Place
from kbuild.outcome import Status

MIN_SAMPLES = 4
"""Fewer show too little of what goes on."""
MAX_FUNCTIONS = 3
"""In which a loop's samples may be found, as the innermost one of a module's; more is a kernel that comes forward."""
INTERRUPTED = 4
"""Of so many samples one may be elsewhere in the kernel: an interrupt has a stack of its own."""

_FRAME = re.compile(r"^\s*(?:RIP: [0-9a-f]{4}:)?(?P<function>[\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+ \[(?P<module>\w+)")
"""A certain frame of a stack, in a module; with a question mark before it, it would be an uncertain one."""
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold)\b.*")

_Kind = Literal["module", "halted", "idle", "user", "guest", "kernel"]


@dataclass(frozen=True)
class Hang:
    """What is known about a step that did not come back."""

    status: Status
    """FAIL: the kernel is to blame. ERROR: it cannot be said."""
    cause: str
    """A function's name, or a word for what was seen; the same in every run."""
    what: str
    """A sentence."""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """One sample, with names."""

    kind: _Kind
    at: Location | None
    callers: tuple[Location, ...]
    text: str

    @property
    def chain(self) -> list[Location]:
        """The modules' functions that it is in, innermost first."""
        return [*([self.at] if self.at else []), *self.callers]


def judge_hang(
    samples: Sequence[CpuSample],
    texts: Sequence[ModuleText],
    matches: Sequence[Match] = (),
    records: Sequence[Record] = (),
    *,
    blame: bool = True,
) -> Hang:
    """Who is to blame for a step that did not come back.

    `texts` are those of the modules that may be in memory, `matches` what the log of the step has, in `records`.
    Without `blame` samples in a module prove nothing: something else than a load or unload was asked for.
    """
    seen = [_see(sample, texts) for sample in samples]
    over = samples[-1].seconds if samples else 0.0
    evidence = tuple(f"{sample.seconds:.2f} s: {one.text}" for sample, one in zip(samples, seen, strict=True))
    if report := _lockup(matches, records, {text.module for text in texts}):
        return Hang(Status.FAIL, report[0], report[1], report[2] + evidence)
    if len(seen) < MIN_SAMPLES:
        return Hang(
            Status.ERROR, "no-sample", "it hangs, or the emulator does: its CPU could not be looked at", evidence
        )
    often = f"in {{}} of {len(seen)} samples over {over:.0f} s"
    kinds = Counter(one.kind for one in seen)
    if kinds["halted"] == len(seen):
        common = _common(seen)
        where = f" in {common}" if common else f" at {samples[0].at.address:x}"
        what = f"the CPU is halted with interrupts off{where}, {often.format(len(seen))}: nothing can wake it"
        return Hang(Status.FAIL, _bare(common.function) if common else "halted", what, evidence)
    inside = [one for one in seen if one.chain and one.kind in ("module", "halted")]
    elsewhere = len(seen) - len(inside)
    if inside and elsewhere == kinds["kernel"] and elsewhere * INTERRUPTED <= len(seen):
        functions = {one.chain[0].function for one in inside}
        common = _common(inside)
        if common and len(functions) <= MAX_FUNCTIONS and blame:
            below = "" if all(one.at for one in inside) else " or in what it calls"
            what = f"the kernel is in {common}{below}, {often.format(len(inside))}"
            return Hang(Status.FAIL, _bare(common.function), what, evidence)
    cause, what = _inconclusive(kinds, len(seen))
    return Hang(Status.ERROR, cause, f"{what}, {often.format(kinds.most_common(1)[0][1])}", evidence)


def _inconclusive(kinds: Counter[_Kind], count: int) -> tuple[str, str]:
    most, often = kinds.most_common(1)[0]
    if often * 2 >= count and most == "idle" and not kinds["module"]:  # else it takes its interrupts
        return "idle", "the CPU is idle: a task sleeps, or the agent waits"
    if often == count and most == "user":
        return "user", "a process is in user mode, and does not come to an end"
    if often == count and most == "guest":
        return "guest", "the CPU is in a virtual machine, or not in the kernel yet"
    names = {
        "module": "a module",
        "halted": "halted",
        "idle": "idle",
        "user": "user mode",
        "guest": "a virtual machine",
    }
    where = ", ".join(f"{names.get(kind, 'the kernel')} {number}" for kind, number in sorted(kinds.items()))
    return "unclear", f"the CPU is in different places ({where})"


def _see(sample: CpuSample, texts: Sequence[ModuleText]) -> _Seen:
    # What halted a CPU stands before the instruction pointer, as a call does before the address that it returns to.
    at = _locate(sample.at, texts, back=sample.halted) if not sample.user else None
    found = (_locate(caller, texts, back=True) for caller in sample.callers if _is_behind_a_call(caller))
    callers = tuple(one for one in found if one is not None)
    place = str(at) if at else f"{sample.at.address:x}"
    if callers and not at:
        place += f", called from {callers[0]}"
    kind: _Kind
    if sample.user:
        kind = "user"
    elif sample.at.address < KERNEL:
        kind = "guest"
    elif sample.halted:
        kind = "idle" if sample.interrupts else "halted"
    else:
        kind = "module" if at or callers else "kernel"
    mode = {"user": "user mode", "guest": "a virtual machine or firmware"}.get(kind, "kernel")
    state = ("halted, " if sample.halted else "") + ("interrupts on" if sample.interrupts else "interrupts off")
    return _Seen(kind, at, callers, f"{mode}, {state}, at {place}")


def _locate(place: Place, texts: Sequence[ModuleText], *, back: bool) -> Location | None:
    return locate(texts, place.address - back, place.start, place.data) if place.data else None


def _is_behind_a_call(place: Place) -> bool:
    """Whether it can be a return address: `call` is E8 and four bytes, or FF with 2 in the middle of the next byte."""
    before = place.data[: place.address - place.start]
    if before[-5:-4] == b"\xe8":
        return True
    return any(before[-n] == 0xFF and before[1 - n] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7) if len(before) >= n)


def _common(seen: Sequence[_Seen]) -> Location | None:
    """The innermost function that all of them are in, where the first one is in it."""
    names = [{(one.module, one.function) for one in sample.chain} for sample in seen]
    shared = set.intersection(*names) if names else set()
    return next((one for one in seen[0].chain if (one.module, one.function) in shared), None)


def _lockup(
    matches: Sequence[Match], records: Sequence[Record], modules: set[str]
) -> tuple[str, str, tuple[str, ...]] | None:
    """The function of a module that a lockup report of the kernel names, a sentence, and the report."""
    for match in matches:
        if match.severity is not Severity.STALL or match.follower:
            continue
        lines = [line for index in match.records for line in records[index].text.split("\n")]
        for line in lines:
            frame = _FRAME.match(line)
            if frame and frame["module"] in modules:
                function = _bare(frame["function"])
                what = f"the kernel reports it in {function} [{frame['module']}]: {match.title}"
                return function, what, tuple(lines)
    return None


def _bare(function: str) -> str:
    """As in the source, without what the compiler adds."""
    return _SUFFIX.sub("", function)
