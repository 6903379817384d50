"""Points that the agent does by itself, one after the other: what came of each, as answers to commands of its own.

A command and its answer cost more time than what is done: so the agent is told what is done for each point, and goes on
as long as each leaves everything as it was. The first point that does not is the last one.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator

import msgspec

from kbuild.load.protocol import Items, LogRecord, Result, Verb, errno_number
from kbuild.load.session import Reply

Ahead = deque[tuple[Verb, Reply]]
"""Commands that need not be sent any more, in the order in which they would be, each with its answer."""

AT_ONCE = 32
"""Points of one command: of its texts each comes once, and what was done is judged when all is."""
PARTS = (Verb.FAULT, Verb.UNLOAD, Verb.STATE, Verb.LOAD, Verb.UNLOAD)
"""What the agent does for a point (agent/sweep.c). The second only where the load did not fail."""
OUT_OF_MEMORY = errno_number("ENOMEM")


def split(whole: Reply, first: int, last: int) -> dict[int, Ahead]:
    """What the agent said of each point that it has begun; it was to do those from `first` to `last`.

    A part that did not come to its end has what ended the whole command in place of a result.
    """
    results = {result.part: result for result in whole.parts}
    logs: dict[int, list[LogRecord]] = {}
    for record in whole.log:
        logs.setdefault(record.part, []).append(record)
    found: dict[int, Ahead] = {}
    ended = isinstance(whole.answer, Result)
    last_part = max(results, default=0)
    at = 0
    # Behind a flood of the log nothing was read of it any more: the others are done again.
    while at == 0 or (
        _goes_on(found[first + at - 1])
        and at * len(PARTS) < last_part + (not ended)
        and not any(part <= at * len(PARTS) for part in whole.lost_in)
    ):
        if first + at > last:
            # It ended behind all points: whoever looks at the host next gets to know.
            found[last].append((Verb.STATE, _unfinished(whole, [])))
            break
        found[first + at] = deque(_parts(whole, at * len(PARTS), results, logs))
        at += 1
    _, latest = found[max(found)][-1]
    latest.broken, latest.broken_more = whole.broken, whole.broken_more
    return found


def _parts(
    whole: Reply, before: int, results: dict[int, Result], logs: dict[int, list[LogRecord]]
) -> Iterator[tuple[Verb, Reply]]:
    """Of the point whose first part is the one after `before`."""
    for number, verb in enumerate(PARTS, before + 1):
        if number == before + 2 and results[number - 1].errno:
            continue
        if (result := results.get(number)) is None:
            if isinstance(whole.answer, Result) and not whole.answer.errno:
                # It stopped before this part, or the line that tells of it was damaged.
                if whole.broken or max(results, default=0) > number or not results:
                    yield verb, Reply(whole.number, log=logs.get(number, []))
                return
            yield verb, _unfinished(whole, [one for part in sorted(logs) if part >= number for one in logs[part]])
            return
        items: list[Items] = whole.items if verb is Verb.STATE and not result.same else []
        reply = Reply(whole.number, msgspec.structs.replace(result, part=0), log=logs.get(number, []), items=items)
        reply.lost = 1 if number in whole.lost_in else 0
        reply.seconds = result.us / 1e6
        yield verb, reply
        if stops(verb, result):
            return


def stops(verb: Verb, result: Result) -> bool:
    """Whether the agent goes no further behind this part."""
    if verb is Verb.FAULT:
        return result.errno not in (0, OUT_OF_MEMORY)
    return result.errno != 0 or (verb is Verb.STATE and not result.same)


def _goes_on(point: Ahead) -> bool:
    verb, reply = point[-1]
    answer = reply.answer
    return len(point) >= len(PARTS) - 1 and isinstance(answer, Result) and not stops(verb, answer)


def _unfinished(whole: Reply, log: list[LogRecord]) -> Reply:
    return dataclasses.replace(whole, log=log, earlier=[], parts=[], lost_in=set(), broken=[], broken_more=0)
