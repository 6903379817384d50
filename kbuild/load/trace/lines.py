"""The lines of a trace to calls. What the kernel writes is untrusted: what is not understood is counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kbuild.load.protocol import Items
from kbuild.load.trace.places import Places
from kbuild.traces import Call, Part

GROUP = "kbuild"
"""Of our kprobe events."""
ENTERS, RETURNS = "e", "r"
"""Before a function's number, in an event's name."""

_LINE = re.compile(
    r"(?P<seconds>\d+)\.(?P<us>\d{6}) \| \d+\) (?P<task>.{1,32}?)-(?P<pid>\d+) \| "
    r"(?:(?P<duration>\d+(?:\.\d+)?) us )?\| ?(?P<what>.*)"
)
"""kernel/trace/trace_functions_graph.c, print_graph_prologue() and what follows it; blanks are squeezed."""
_FUNCTION = r"(?P<name>[\w.]+)(?: \[(?P<module>[\w-]+)\])?"
_ENTERED = re.compile(_FUNCTION + r"\(\) \{")
_LEAF = re.compile(_FUNCTION + r"\(\);")
_RETURNED = re.compile(r"\}(?: /\* " + _FUNCTION + r" \*/)?")
_EVENT = re.compile(rf"/\* (?P<kind>[{ENTERS}{RETURNS}])(?P<number>\d+): \((?P<place>[^)]*)\)(?P<fields>.*) \*/")
_FIELD = re.compile(r' (?P<name>[a-z]\w*)=(?:"(?P<string>[^"]*)"|(?P<word>\(fault\)|[^" ][^"=]*?))(?= [a-z]\w*=|$)')
_NOISE = re.compile(r"-+|\d+\) \S.* => \S.*")
"""Between two tasks: kernel/trace/trace_functions_graph.c, verif_pid()."""
_ADDRESS = re.compile(r"0x([0-9a-f]{1,16})")


@dataclass
class _Reader:
    """State of one reading."""

    names: list[str]
    """Of the watched functions, by number: `NAME` or `MODULE:NAME`."""
    part: Part
    places: Places | None
    open: dict[str, list[Call]] = field(default_factory=dict)
    """Of each task, innermost last."""
    last: dict[tuple[str, str], Call] = field(default_factory=dict)
    """Of a task and a name, the call of a module's function that returned last."""
    hidden: set[int] = field(default_factory=set)
    """Places of the calls that the kernel makes of itself."""
    start: float | None = None
    place: int = 0

    def line(self, text: str) -> None:
        """Take one line in."""
        match = _LINE.fullmatch(text)
        if match is None:
            self.part.unread += not _NOISE.fullmatch(text)
            return
        now = int(match["seconds"]) * 1e6 + int(match["us"])
        self.start = now if self.start is None else self.start
        task = f"{match['task']}-{match['pid']}"
        us, duration = now - self.start, match["duration"]
        took = float(duration) if duration is not None else None
        what = match["what"]
        if found := _ENTERED.fullmatch(what):
            self._enter(task, us, found["name"], found["module"])
        elif found := _LEAF.fullmatch(what):
            self._leave(task, self._enter(task, us, found["name"], found["module"]), took)
        elif found := _RETURNED.fullmatch(what):
            self._returned(task, found["name"], found["module"], took)
        elif (found := _EVENT.fullmatch(what)) and int(found["number"]) < len(self.names):
            fields = {one["name"]: one["string"] or one["word"] or "" for one in _FIELD.finditer(found["fields"])}
            self._event(task, us, found["kind"], self.names[int(found["number"])], fields)
        elif not _NOISE.fullmatch(what):
            self.part.unread += 1

    def _named(self, module: str | None, name: str) -> tuple[str | None, str]:
        """A function's name: of a module that is gone the kernel gives the address, or what was there before it."""
        if self.places is None:
            return module, name
        if found := _ADDRESS.fullmatch(name):
            return self.places.function(int(found[1], 16)) or (module, name)
        return self.places.really(module, name) if module is not None else (module, name)

    def _next(self) -> int:
        self.place += 1
        return self.place - 1

    def _enter(self, task: str, us: float, name: str, module: str | None, caller: str | None = None) -> Call:
        stack = self.open.setdefault(task, [])
        module, name = self._named(module, name)
        call = Call(
            function=name,
            module=module,
            task=task,
            depth=sum(one.entered not in self.hidden for one in stack),
            us=us,
            entered=self._next(),
            caller=caller,
        )
        stack.append(call)
        # Behind the tail call of a traced function the return address is the tracer's own.
        if caller is None or caller.endswith("]") or caller.startswith("return_to_handler"):
            self.part.calls.append(call)
        else:
            self.hidden.add(call.entered)
        return call

    def _leave(self, task: str, call: Call, took: float | None) -> None:
        stack = self.open[task]
        # What was inside and was not seen to return did so before.
        del stack[stack.index(call) :]
        call.returned, call.duration_us = self._next(), took
        self.last[task, call.function] = call

    def _returned(self, task: str, name: str | None, module: str | None, took: float | None) -> None:
        stack = self.open.get(task, [])
        if name is not None:
            name = self._named(module, name)[1]
        call = next((one for one in reversed(stack) if name in (None, one.function)), None)
        if call is not None:
            self._leave(task, call, took)
        # Otherwise it was called before the trace began.

    def _event(self, task: str, us: float, kind: str, name: str, fields: dict[str, str]) -> None:
        module, _, function = name.rpartition(":")
        stack = self.open.setdefault(task, [])
        inside = next((one for one in reversed(stack) if (one.module or "", one.function) == (module, function)), None)
        if kind == ENTERS:
            strings = tuple(value for key, value in fields.items() if key.startswith("s") and value != "(fault)")
            if module and inside is not None:
                inside.strings = strings
            elif not module:
                self._enter(task, us, function, None, fields.get("caller")).strings = strings
            return
        result = int(fields["result"], 16) if re.fullmatch(r"0x[0-9a-f]{1,16}", fields.get("result", "")) else None
        call = inside
        if module and call is None:
            call = self.last.get((task, function))
        if call is None:
            return  # it was called before the trace began
        call.result = result
        if not module:
            self._leave(task, call, us - call.us)


def read_lines(lines: Iterable[str], part: Part, names: list[str], places: Places | None = None) -> None:
    """Add the calls of a part, without those that the kernel makes of itself: no rule is about them.

    `names`: the functions that events are about, by their number. `places`: of a module that is gone.
    """
    reader = _Reader(names, part, places)
    for line in lines:
        reader.line(line)


def read_missed(lines: Iterable[str], names: list[str]) -> Iterator[tuple[str, int]]:
    """Functions of which calls or returns were missed, and how many.

    kernel/trace/trace_kprobe.c, probes_profile_seq_show().
    """
    for line in lines:
        match = re.fullmatch(rf"[{ENTERS}{RETURNS}](\d+) (\d+) (\d+)", line)
        if match and int(match[3]) and int(match[1]) < len(names):
            yield names[int(match[1])], int(match[3])


def lines_of(items: Iterable[Items], what: str) -> Iterator[str]:
    """What the agent sent of one file."""
    for part in items:
        if part.what == what:
            yield from part.items
