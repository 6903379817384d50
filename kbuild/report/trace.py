"""A trace as a person reads it: calls as a tree with their times. Takes the files of a run's `trace` steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import IO

from kbuild.errors import UserError
from kbuild.record import Record, runs_home
from kbuild.report.terminal import console_for, plain
from kbuild.traces import Call, Part, read_trace

HEADER = f"{'µs':>12} {'takes':>12}  function"


def render_traces(record: Record, stream: IO[str] | None = None) -> None:
    """Print all traces of a run. Raises UserError where it has none."""
    console = console_for(stream or sys.stdout)
    some = False
    for transcript in record.transcripts:
        for step in transcript.steps:
            if step.action == "trace" and "file" in step.detail:
                trace = read_trace(runs_home() / record.id / "hosts" / step.detail["file"])
                for part in trace.parts:
                    where = f"{transcript.host}, {transcript.order}, {part.action} {part.module}"
                    plain(console, f"\n{where}: {_summary(part)}")
                    for line in [HEADER, *tree(part.calls)] if part.calls else []:
                        plain(console, line)
                if trace.blind:
                    plain(console, f"not watched: {', '.join(trace.blind)}", style="dim")
                some = True
    if not some:
        raise UserError(f"{record.id}: has no trace: an order with a 'trace' step makes one (--flavour trace)")


def _summary(part: Part) -> str:
    parts = [f"{len(part.calls)} calls"]
    parts += [f"{part.lost} events lost"] if part.lost else []
    parts += [f"{part.unread} lines not understood"] if part.unread else []
    return ", ".join(parts)


def tree(calls: Sequence[Call]) -> Iterator[str]:
    """One line for each call; calls of the same function one after the other, with nothing inside, are one line."""
    index = 0
    while index < len(calls):
        call, count = calls[index], 1
        while index + count < len(calls) and _alike(call, calls[index + count], calls[index + count + 1 :]):
            count += 1
        last = calls[index + count - 1]
        took = last.us + last.duration_us - call.us if count > 1 and last.duration_us is not None else call.duration_us
        yield _line(call, took, count)
        index += count


def _alike(call: Call, other: Call, later: Sequence[Call]) -> bool:
    """Whether both are the same to a person, and nothing is inside of the second one."""
    same = (call.function, call.module, call.task, call.depth, call.strings, call.result)
    if same != (other.function, other.module, other.task, other.depth, other.strings, other.result):
        return False
    following = next(iter(later), None)
    return following is None or following.task != other.task or following.depth <= other.depth


def _line(call: Call, took: float | None, count: int) -> str:
    took_text = f"{took:.1f}" if took is not None else "-"
    strings = ", ".join(f'"{one}"' for one in call.strings)
    result = f" = {_number(call.result)}" if call.result is not None else ""
    times = f" × {count}" if count > 1 else ""
    where = call.module or "kernel"
    return f"{call.us:12.1f} {took_text:>12}  {'  ' * call.depth}{call.function}({strings}){result}{times}  {where}"


def _number(value: int) -> str:
    """A small number or an errno as such, anything else as an address."""
    signed = value - (1 << 64) if value >> 63 else value - (1 << 32) if 0xFFFF_F000 <= value <= 0xFFFF_FFFF else value
    return str(signed) if abs(signed) < 4096 else f"{value:#x}"
