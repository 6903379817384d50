"""From what came back to what is judged: log records of a reply, and findings from what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from kbuild.cpus import Cpus
from kbuild.dmesg.classify import Match
from kbuild.dmesg.record import Record, escape
from kbuild.dmesg.signatures import Severity
from kbuild.elf.text import ModuleText
from kbuild.load.hang import Hang, judge_hang
from kbuild.load.protocol import Died, LogRecord, Refused
from kbuild.load.session import End, Reply
from kbuild.outcome import Finding, Status, finding_id, worst
from kbuild.transcript import LogLine

BLAMED = ("load", "unload", "inject", "together", "cpu", "suspend")
"""What a module's own code is called for, by the kernel."""
MAX_EVIDENCE = 60
"""Lines of a report that go into a finding; the transcript has all."""
MIN_STALL_S = 10
"""What a stall takes that does not say it: RCU's after 21 s as a rule, a hard lockup after 10 (kernel/watchdog.c)."""


def records_of(reply: Reply) -> list[Record]:
    """The log records that were made during a command.

    Where the guest died the console tells what its agent no longer could; what both tell is taken once.
    """
    records = from_agent(reply.log)
    if reply.end is not None:
        told = {(record.us, record.text) for record in records}
        untold = (record for record in reply.console.records if (record.us, record.text) not in told)
        records += [msgspec.structs.replace(record, step=reply.number) for record in untold]
    return records


def from_agent(log: Sequence[LogRecord]) -> list[Record]:
    """The agent's records as the classifier takes them; what goes on with a line is joined to it."""
    records: list[Record] = []
    latest: dict[str | None, int] = {}
    for one in log:
        text = "\n".join(map(escape, one.text.split("\n")))
        if one.cont and one.caller in latest:
            before = records[latest[one.caller]]
            records[latest[one.caller]] = msgspec.structs.replace(before, text=before.text + text)
            continue
        latest[one.caller] = len(records)
        records.append(Record(one.seq, one.us, one.level, text, one.caller, one.id or None, one.facility))
    return records


def log_lines(records: Sequence[Record]) -> list[LogLine]:
    """Records as the transcript keeps them, without the agent's own marks."""
    return [
        LogLine(r.text, r.seq, r.us, r.level, r.caller, "kmsg" if r.seq is not None else "console")
        for r in records
        if r.facility == 0
    ]


def findings_of(
    matches: Sequence[Match],
    records: Sequence[Record],
    subject: str,
    allowed: Collection[str],
    during: str,
    kept: float = 0.0,
    cpus: Cpus = Cpus.EMULATED,
) -> Iterator[Finding]:
    """Findings for what counts among the matches of one step; `allowed` signatures were expected or may come.

    `during` says for a person what was going on: `load kvm_amd`; `kept` is `Reply.kept_seconds`, `cpus` the host's.
    """
    first: dict[str, tuple[Match, Status]] = {}
    often: Counter[str] = Counter()
    for match in matches:
        status = match.severity.status(emulated=cpus is not Cpus.OWN)
        if status is None or match.signature in allowed or match.follower:
            continue
        name = finding_id("load", match.signature, subject, match.title)
        if match.severity is Severity.STALL and _was_kept(match, kept):
            status = Status.MISS
        # Reports of the same are one finding, and the worst of them counts.
        if name not in first or first[name][1] != worst((status, first[name][1])):
            first[name] = match, status
        often[name] += match.count
    for name, (match, status) in first.items():
        cut = " (the report is cut off)" if match.truncated else ""
        times = f" ({often[name]} times)" if often[name] > 1 else ""
        owner = f"; it is {match.owner}()'s to remove" if match.owner else ""
        why = f"; {_why(status, kept, cpus)}" if match.severity is Severity.STALL else ""
        yield Finding(
            id=name,
            status=status,
            message=f"{during}: {match.title}{times}{cut}: {match.meaning}{owner}{why}",
            evidence=tuple(records[index].text for index in match.records[:MAX_EVIDENCE]),
            module=subject,
        )


def _was_kept(stall: Match, kept: float) -> bool:
    """Whether most of what the kernel took for a stall is time in which its emulator did not run."""
    return kept * 2 >= (stall.seconds or MIN_STALL_S)


def _why(status: Status, kept: float, cpus: Cpus) -> str:
    if status == Status.MISS:
        return f"its clock went on for {kept:.0f} s in which the emulator was kept from running: not the kernel's doing"
    if cpus is Cpus.OWN:
        return "no emulator was in its way; if the host is a virtual machine, see whether that was kept from running"
    slow = "emulated slowly" if cpus is Cpus.EMULATED else "slow for being nested in another KVM"
    return f"the emulator could run: whether the kernel is at fault, or only {slow}, cannot be told"


def crash_in(matches: Sequence[Match]) -> Match | None:
    """The first crash, which is the one that counts."""
    return next((m for m in matches if m.severity is Severity.CRASH and not m.follower), None)


def hang_of(
    reply: Reply,
    texts: Callable[[], Sequence[ModuleText]],
    matches: Sequence[Match],
    records: Sequence[Record],
    verb: str,
) -> Hang | None:
    """What was seen of a command's hang; None for one that ended otherwise."""
    if reply.answer is not None or reply.end not in (End.SILENT, End.SLOW):
        return None
    # A virtual machine that does not end keeps kvm.ko busy, and can be the emulator's fault.
    return judge_hang(reply.samples, texts(), matches, records, blame=verb in BLAMED)


def without_answer(reply: Reply, matches: Sequence[Match], hang: Hang | None = None) -> tuple[Status, str]:
    """The outcome of a command that has no result, and a sentence about it.

    The kernel is blamed where its log shows a crash, where it took the machine down, and where it was seen to hang;
    not for silence, nor where the log names another reason (`Match.kills`).
    """
    if crash := crash_in(matches):
        doing = reply.answer.doing if isinstance(reply.answer, Died) else None
        return Status.FAIL, f"the kernel crashed: {crash.title}" + (f" while '{doing}' was read" if doing else "")
    killer = next((match for match in matches if match.kills), None)
    match reply.answer, reply.end:
        case (Died(), _) | (_, End.PANIC) if killer is not None:
            return Status.ERROR, f"{killer.title}: {killer.meaning}"
        case Died() as died, _:
            return (
                Status.FAIL,
                f"the process that did it was killed (signal {died.signal}), and the log does not say why",
            )
        case Refused() as refused, _:
            return Status.ERROR, f"the agent refused the command: {refused.why}"
        case _, End.CANCELLED:
            return Status.MISS, "interrupted"
        case _, End.HOST:
            return Status.MISS, f"the host failed: {reply.detail}"
        case _, End.UNCLEAR as end:
            return Status.ERROR, f"{end.value}: {reply.detail}"
        case _, End.STARVED as end:
            return Status.MISS, f"{end.value} {reply.detail}: it was stopped, or this machine has no time for it"
        case _, (End.PANIC | End.REBOOT | End.EXIT) as end:
            return Status.FAIL, f"{end.value}"
        case _, (End.SILENT | End.SLOW) as end:
            where = " while it booted" if reply.number == 0 else ""
            what = f"{end.value} {reply.detail}{where}"
            return (hang.status, f"{what}: {hang.what}") if hang else (Status.ERROR, what)
        case _:
            return Status.ERROR, "no answer"
