"""A `trace` step: switch the kernel's tracer on, off again, and keep what it saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from kbuild.elf.contents import MalformedError
from kbuild.load.conversation import Conversation, StopError
from kbuild.load.ledger import Ledger
from kbuild.load.orders.format import Step
from kbuild.load.protocol import COMMAND_BYTES, LogRecord, Verb, errno_name
from kbuild.load.session import Session
from kbuild.load.trace.asked import Question, Watched
from kbuild.load.trace.lines import ENTERS, GROUP, RETURNS, lines_of, read_lines, read_missed
from kbuild.load.trace.observe import observe
from kbuild.load.trace.places import Places
from kbuild.outcome import Status
from kbuild.traces import Part, Trace, write_trace
from kbuild.transcript import StepResult

TRACER = "function_graph"
NO_CALL_SITE = "irq_work_sync"
"""kernel/Makefile takes the tracer's flags from irq_work.o."""
BUFFER_KB = 16384
"""For each CPU: some 400,000 events."""
NEVER_EMPTY = "do_init_module"
"""An empty filter means every function; this one runs once a load (kernel/module/main.c)."""
OPTIONS = ("funcgraph-abstime", "funcgraph-proc", "funcgraph-tail", "nofuncgraph-overhead", "nofuncgraph-irqs")
MAX_LINES = 200_000
"""Of one trace that are taken from the agent."""
_STRINGS = " s1=+0($arg1):string s2=+0($arg2):string"
"""What takes a name takes it first, or behind what it belongs to."""
RESULT = " result=$retval:x64"
_ROOM = COMMAND_BYTES - 100


def warm_up(session: Session) -> list[LogRecord]:
    """Let the tracer make what it never gives back, before a footprint is taken. Gives what came of the log meanwhile.

    7.2's function graph: the slab cache `fgraph_stack`. Probes on calls of the tracer: their trampoline
    (arch/x86/kernel/ftrace.c, arch_ftrace_update_trampoline()). Other probes: the page that instructions are copied to,
    the last of which stays (kernel/kprobes.c, collect_one_slot()). What a kernel without it answers does not matter.
    """
    settings: tuple[tuple[str, ...], ...] = (
        ("set_ftrace_filter", NEVER_EMPTY),
        ("current_tracer", TRACER),
        ("current_tracer", "nop"),
        ("set_ftrace_filter",),
        ("kprobe_events", f"p:{GROUP}/warm {NO_CALL_SITE}"),
        ("kprobe_events", f"p:{GROUP}/warmer {NEVER_EMPTY}"),
        (f"events/{GROUP}/enable", "1"),
        (f"events/{GROUP}/enable", "0"),
        ("kprobe_events",),
    )
    replies = [session.command(Verb.TRACE, *setting) for setting in settings]
    return [record for reply in replies for record in (*reply.earlier, *reply.log)]


class Recorder:
    """Of one order that is being run."""

    def __init__(self, talk: Conversation, ledger: Ledger) -> None:
        self._talk = talk
        self._ledger = ledger
        self._places = Places(ledger.request.modules)
        self._watched: tuple[Watched, ...] = ()
        self._trace: Trace | None = None
        self._modules: tuple[str, ...] = ()
        self._files = 0

    def begin(self, step: Step) -> None:
        """From now on loads and unloads are recorded: the functions of these modules, also of those to come."""
        self._trace, self._modules = Trace(), step.trace or ()
        self._clear()
        for setting, text in (
            ("trace_clock", "mono"),  # one for all CPUs, and exact where the kernel holds its TSC for unstable
            ("buffer_size_kb", str(BUFFER_KB)),
            ("set_ftrace_filter", NEVER_EMPTY),
            *(("set_ftrace_filter", f"*:mod:{module}") for module in step.trace or ()),
            ("current_tracer", TRACER),
            *(("trace_options", option) for option in OPTIONS),  # which are the tracer's own
        ):
            self._set(setting, text)
        self._watched = self._question().watched
        self._probe(self._trace)

    def before(self, action: str, module: str) -> None:
        """A load or unload comes."""
        if self._trace is None:
            return
        if action == Verb.UNLOAD:
            for one in {module, *self._modules}:
                reply = self._talk.command(Verb.SECTIONS, one)
                self._places.note(one, lines_of(reply.items, "sections"))
        self._set("tracing_on", "1")

    def after(self, action: str, module: str) -> None:
        """It is over. What it called is read at once: later the addresses may be another module's."""
        if self._trace is None:
            return
        self._set("tracing_on", "0")
        part = Part(action=action, module=module)
        lines, part.lost = self._read("trace")
        places = self._places if action == Verb.UNLOAD else None
        read_lines(lines, part, [one.name for one in self._watched], places)
        self._trace.parts.append(part)
        self._talk.command(Verb.TRACE, "trace")

    def end(self, step: Step) -> None:
        """Keep what was recorded, hold the rules against it, and leave the tracer as it was."""
        assert self._trace is not None
        missed = dict(read_missed(self._read("kprobe_profile")[0], [one.name for one in self._watched]))
        self._trace.blind = sorted({*self._trace.blind, *missed})
        self._clear()
        trace, self._trace = self._trace, None
        self._ledger.observed += observe(self._question(), trace)
        calls = [call for part in trace.parts for call in part.calls]
        lost, unread = (sum(getattr(part, what) for part in trace.parts) for what in ("lost", "unread"))
        status, reason = Status.PASS, None
        if lost or unread:
            status, reason = Status.ERROR, f"trace: {lost} events were lost, {unread} lines are not understood"
        elif not any(call.module in (step.trace or ()) for call in calls):
            wanted = " or ".join(step.trace or ())
            status, reason = Status.ERROR, f"trace: no function of {wanted} was seen to be called"
        self._keep(status, reason, self._written(trace))

    def stop(self) -> None:
        """The order cannot go on: what was recorded until now is kept, and not judged."""
        trace, self._trace = self._trace, None
        if trace is not None and trace.parts:
            self._keep(Status.DONE, None, self._written(trace))

    def _written(self, trace: Trace) -> dict[str, str]:
        """Write the trace into the boot's folder; what its step is to tell."""
        self._files += 1
        file = self._ledger.boot.folder / f"trace-{self._ledger.boot.orders}-{self._files}.json"
        write_trace(file, trace)
        calls = [call for part in trace.parts for call in part.calls]
        detail = {
            "file": str(file.relative_to(self._ledger.request.folder)),
            "calls": str(len(calls)),
            "functions": str(len({(call.module, call.function) for call in calls})),
        }
        return detail | ({"blind": " ".join(trace.blind)} if trace.blind else {})

    def _question(self) -> Question:
        try:
            return self._ledger.request.question
        except MalformedError as error:
            self._refuse(f"what the rules are about cannot be found in the modules: {error}")

    # The agent's side.

    def _clear(self) -> None:
        """As after the boot. What is not there need not be cleared: it is told by what is set."""
        for setting, text in (
            ("tracing_on", "0"),
            ("current_tracer", "nop"),
            (f"events/{GROUP}/enable", "0"),
            ("kprobe_events", ""),
            ("set_ftrace_filter", ""),
            ("trace", ""),
        ):
            self._talk.command(Verb.TRACE, setting, *([text] if text else []))

    def _set(self, setting: str, text: str) -> None:
        reply = self._talk.command(Verb.TRACE, setting, text)
        got = self._talk.answered(reply, "trace", setting)
        if got.errno:
            self._refuse(f"{setting}={text}: {errno_name(got.errno)}: this kernel cannot be traced so")

    def _probe(self, trace: Trace) -> None:
        """Watch what rules name. A function that takes no probe is not watched, and what it does not observable."""
        wanted = [*self._definitions()]
        packed: list[list[tuple[str, str]]] = []
        for name, text in wanted:
            if packed and sum(len(one) + 4 for _, one in packed[-1]) + len(text) * 3 < _ROOM:
                packed[-1].append((name, text))
            else:
                packed.append([(name, text)])
        for some in packed:
            if self._add("\n".join(text for _, text in some)):
                continue
            for name, text in some:
                # EEXIST: it went well before another of the same command did not. A function that returns nothing has
                # no $retval where the kernel has BTF (kernel/trace/trace_probe.c, parse_probe_vars()).
                if not self._add(text, "EEXIST") and not (RESULT in text and self._add(text.replace(RESULT, ""))):
                    trace.blind.append(name)
        if wanted:
            self._talk.command(Verb.TRACE, f"events/{GROUP}/enable", "1")

    def _definitions(self) -> Iterator[tuple[str, str]]:
        """The last probe of a function runs first: it finds the return address that another one replaces."""
        for number, one in enumerate(self._watched):
            yield one.name, f"r:{GROUP}/{RETURNS}{number} {one.name}{RESULT}"
            if one.enters:
                strings = _STRINGS if one.strings else ""
                yield one.name, f"p:{GROUP}/{ENTERS}{number} {one.name} caller=$stack0:symbol{strings}"

    def _add(self, text: str, *allowed: str) -> bool:
        reply = self._talk.command(Verb.TRACE, "kprobe_events", text)
        got = self._talk.answered(reply, "trace", "kprobe_events")
        return got.errno == 0 or errno_name(got.errno) in allowed

    def _read(self, file: str) -> tuple[list[str], int]:
        """The lines of a file of tracefs, and how much of it is missing: what the buffers lost, and damaged lines."""
        lines: list[str] = []
        broken = 0
        while True:
            reply = self._talk.command(Verb.TRACED, file, str(len(lines)))
            got = self._talk.answered(reply, "trace", file)
            if got.errno:
                self._refuse(f"{file}: {errno_name(got.errno)}: the trace cannot be read")
            lines += lines_of(reply.items, file)
            broken += len(reply.broken) + reply.broken_more
            if not got.more or not lines or len(lines) > MAX_LINES:
                return lines, (got.lost or 0) + bool(got.more) + broken

    def _keep(self, status: Status, reason: str | None, detail: dict[str, str]) -> None:
        number = self._ledger.next_number
        result = StepResult(number=number, action="trace", status=status, reason=reason, detail=detail)
        self._ledger.keep(result, self._talk.nothing(), kind="trace", subject="trace")

    def _refuse(self, reason: str) -> NoReturn:
        self._trace = None
        self._keep(Status.ERROR, f"trace: {reason}", {})
        raise StopError
