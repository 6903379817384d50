"""Rules held against a trace: what `first`, `then` and `within` did there, in each call of the rule's entry."""

from __future__ import annotations

from collections.abc import Sequence

from kbuild.elf.image import module_key
from kbuild.load.trace.asked import Asked, Question, Watchable
from kbuild.traces import Call, Observation, Part, Seen, Trace

MAX_ERRNO = 4095
"""include/linux/err.h"""
RANK: Sequence[Seen] = ("broken", "incomplete", "not observable", "kept", "not seen")
"""Of several calls of an entry, what counts."""


def observe(question: Question, trace: Trace) -> list[Observation]:
    """Of each rule, and each module whose entry was called. What the rule says of itself is not asked here."""
    found: list[Observation] = []
    blind = frozenset(trace.blind)
    for asked in question.asked:
        said = [_judge(asked, part, entry, blind) for part in trace.parts for entry in _entries(asked, part)]
        if said:
            seen, why = min(said, key=lambda one: RANK.index(one[0]))
            found.append(Observation(rule=asked.rule.id, module=asked.module, seen=seen, why=why))
    return found


def _entries(asked: Asked, part: Part) -> list[Call | None]:
    """The calls of a rule's entry in a load or unload. None: it cannot be traced; of init and exit all of it counts."""
    action = {"init": "load", "exit": "unload"}.get(asked.rule.entry)
    if action is not None and (part.action, part.module) != (action, module_key(asked.module)):
        return []
    if not asked.entry and part.module == module_key(asked.module):
        return [None]
    return [call for call in part.calls if (call.module, call.function) in asked.entry]


def _judge(asked: Asked, part: Part, entry: Call | None, blind: frozenset[str]) -> tuple[Seen, str]:
    """How a rule fared within one call of its entry."""
    rule = asked.rule
    if entry is None and rule.entry not in ("init", "exit"):
        return "not observable", f"{rule.entry}() does not call the tracer"
    inside, about = part.calls, f"{part.action} of {part.module}"
    if entry is not None:
        end = entry.returned if entry.returned is not None else float("inf")
        inside, about = [one for one in inside if entry.entered < one.entered < end], f"{entry.function}()"
    if hidden := _unseen(asked.then) or _unseen(asked.first) or _unseen(asked.within):
        return "not observable", hidden
    if rule.paths != "all":
        wanted = _returned(entry.result if entry is not None else None, rule.paths)
        if wanted is None:
            return "not observable", f"what {about} returned was not seen"
        if not wanted:
            return "not seen", f"{about} did not return with {rule.paths}"
    unwatched = [f"{name}() could not be watched" for name in sorted(blind & _names(asked.first, asked.within))]
    doubts = [*unwatched, *_hidden(asked.first, asked.within)]
    kept, unsure = 0, ""
    for call in inside:
        is_then = _is(asked.then, call)
        if is_then is False:
            continue
        missing = _missing(asked, inside, call)
        if missing is None:
            kept += is_then is True
        elif is_then is None:
            unsure = f"{call.function}() came before {missing}, and its string could not be read"
        elif not part.whole:
            unsure = f"{call.function}() came before {missing} was seen, but events were lost"
        elif doubts:
            return "not observable", f"{call.function}() came, and {missing} was not seen: {doubts[0]}"
        else:
            after = f", {call.us - entry.us:.0f} µs after {about} began" if entry is not None else ""
            return "broken", f"{_told(call)} came before {missing}{after}"
    if unsure:
        return "incomplete", unsure
    if not part.whole:
        return "incomplete", f"{part.lost} events were lost, {part.unread} lines are not understood"
    partly = [*_hidden(asked.then), *(f"{name}() could not be watched" for name in sorted(blind & _names(asked.then)))]
    but = f"; {partly[0]}" if partly else ""
    if not kept:
        return "not seen", f"{asked.then.told} did not come{but}"
    times = "once" if kept == 1 else f"{kept} times"
    return "kept", f"{asked.then.told} came {times}{but}"


def _names(*parts: Watchable | None) -> frozenset[str]:
    """The functions of events, as probes are named."""
    functions = (function for part in parts if part is not None for function in part.functions)
    return frozenset(symbol if module is None else f"{module}:{symbol}" for module, symbol in functions)


def _unseen(part: Watchable | None) -> str:
    """Why nothing of an event can be seen, or nothing."""
    if part is None or part.functions:
        return ""
    return f"{part.told}: {part.hidden[0] if part.hidden else 'no such function'}"


def _hidden(*parts: Watchable | None) -> list[str]:
    return [hidden for part in parts if part is not None for hidden in part.hidden]


def _missing(asked: Asked, inside: Sequence[Call], then: Call) -> str | None:
    """What should have happened before a call, or be going on, and was not seen to."""
    if asked.first is not None and not any(_happened(asked.first, call, then.entered) for call in inside):
        return asked.first.told
    if asked.within is not None and not any(
        _is(asked.within, call) and call.entered < then.entered and not _over(call, then.entered) for call in inside
    ):
        return f"a call of {asked.within.told}"
    return None


def _over(call: Call, place: int) -> bool:
    return call.returned is not None and call.returned < place


def _happened(first: Watchable, call: Call, place: int) -> bool:
    """Whether a call is `first`, and has returned before that place as it should."""
    return _over(call, place) and _is(first, call) is True and _succeeded(first.event.success, call.result)


def _is(part: Watchable, call: Call) -> bool | None:
    """Whether a call is such an event; None: it may be, for its string could not be read."""
    if (call.module, call.function) not in part.functions:
        return False
    if part.event.arg is None:
        return True
    if part.event.arg in call.strings:
        return True
    return None if not call.strings else False


def _succeeded(how: str | None, result: int | None) -> bool:
    if how is None:
        return True
    if result is None:
        return False
    if how == "zero":
        return result & 0xFFFF_FFFF == 0
    return bool(result) if how == "nonnull" else result < (1 << 64) - MAX_ERRNO


def _returned(result: int | None, how: str) -> bool | None:
    """Whether a function returned an int with `success` (no errno), or an `error` (not 0)."""
    if result is None:
        return None
    number = result & 0xFFFF_FFFF
    return number != 0 if how == "error" else number < (1 << 32) - MAX_ERRNO


def _told(call: Call) -> str:
    return f'{call.function}() of "{call.strings[0]}"' if call.strings else f"{call.function}()"
