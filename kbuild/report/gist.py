"""What a report of any form says of a run: its verdict in a word, what was judged, findings that belong together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.cpus import Cpus
from kbuild.outcome import RUN_OF, Finding, Status, exit_status, worst

if TYPE_CHECKING:
    from kbuild.record import HostFacts, Record, Stage
    from kbuild.transcript import StepResult, Transcript

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")

REMOTE = "a machine of its own, reached by SSH"

_REGISTERS = re.compile(r"(?:R(?!IP: 0010)[A-Z0-9]{2}|EFLAGS|ORIG_RAX|[CDEFGS]S|CR\d|DR\d|PKRU|Code): ")
"""Of a crash's report, what seldom tells a person anything: arch/x86/kernel/process_64.c, __show_regs()."""


def telling(lines: Iterable[str]) -> list[str]:
    """Lines of a log without registers."""
    return [line for line in lines if not _REGISTERS.match(line)]


def verdict_of(record: Record) -> tuple[str, Status]:
    """In a word, with the outcome that it is shown as: a run without a verdict is not one that passed."""
    if record.interrupted:
        return f"interrupted in {record.interrupted}", Status.MISS
    if record.verdict is None:
        return ("not judged" if record.ended else "not finished"), Status.ERROR
    return str(record.verdict), record.verdict


def short_digests(text: str) -> str:
    """The text with the beginning of each digest in place of all of it."""
    return _DIGEST.sub(r"\1", text)


def asked(record: Record) -> str:
    """What was to be judged, as the user said it."""
    return " + ".join(record.tree[key] for key in ("asked", "patches") if key in record.tree)


def identity(record: Record) -> str:
    """What that was, where it says more."""
    what = short_digests(record.tree.get("identity", ""))
    return what if what != asked(record) else ""


def order_of(transcript: Transcript) -> str:
    """The order, of which the transcript may be one run."""
    return transcript.order.partition(RUN_OF)[0]


def emulator(said: str, cpus: Cpus) -> str:
    """What runs a host's guests, in its own words. Where a machine of somebody's is, is nobody else's business."""
    return REMOTE if cpus is Cpus.OWN else said


def machine(said: str, facts: HostFacts | None) -> str:
    """What a host is, in a line: what runs it, what its guests are shown, and what its CPUs are."""
    if facts is None:
        return said
    if facts.cpus_are is Cpus.OWN:
        return REMOTE
    return f"{said}, CPU model {facts.cpu}, {facts.cpus} CPU, {facts.memory_mb} MB, {facts.cpus_are}"


def cpus_of(record: Record) -> dict[str, Cpus]:
    """Of the hosts on which something was run: what their CPUs are."""
    ran = dict.fromkeys(one.host for one in record.transcripts if one.status != Status.SKIP)
    return {host: record.machines[host].cpus_are if host in record.machines else Cpus.EMULATED for host in ran}


def hardware(cpus: Mapping[str, Cpus]) -> Iterator[str]:
    """Sentences that say what is real of the hosts."""
    if not cpus:
        return
    if {*cpus.values()} == {Cpus.EMULATED}:
        yield "All CPUs are emulated: nothing here ran on real hardware."
        return
    said = {
        Cpus.OWN: "reached by SSH, with CPUs of their own",
        Cpus.NESTED: "QEMU with KVM, on the CPU of the machine that it ran on",
        Cpus.EMULATED: "emulated, on no hardware",
    }
    for kind, words in said.items():
        if names := [host for host, own in cpus.items() if own is kind]:
            yield f"{words[0].upper()}{words[1:]}: {', '.join(names)}."


def testified(names: Mapping[str, str], cpus: Mapping[str, Cpus]) -> str:
    """For a `Tested-by:` line: hosts, each with what runs it, by what their CPUs are."""
    words = {Cpus.OWN: "by SSH", Cpus.NESTED: "QEMU with KVM", Cpus.EMULATED: "emulated"}
    groups = []
    for kind, word in words.items():
        # What is reached by SSH has no name but the host's.
        mine = [
            host if kind is Cpus.OWN else f"{host} ({said.partition(' (')[0]})"
            for host, said in names.items()
            if cpus.get(host, Cpus.EMULATED) is kind
        ]
        groups += [f"{word}: {', '.join(mine)}"] if mine else []
    return "; ".join(groups)


def hosts(record: Record) -> list[str]:
    """All hosts that something was asked of, in the order of the transcripts."""
    return list(dict.fromkeys(one.host for one in record.transcripts))


def cells(record: Record) -> dict[str, dict[str, list[Transcript]]]:
    """Orders, then hosts, then the runs of one on the other."""
    found: dict[str, dict[str, list[Transcript]]] = {}
    for one in record.transcripts:
        found.setdefault(order_of(one), {}).setdefault(one.host, []).append(one)
    return found


def counting(record: Record) -> list[Finding]:
    """The findings that make the verdict what it is."""
    return open_findings(record.findings)


def untold(record: Record) -> list[Transcript]:
    """What has no result and no finding that says why."""
    told = {(finding.host, finding.order) for finding in counting(record)}
    bad = (Status.MISS, Status.ERROR)
    return [one for one in record.transcripts if one.status in bad and (one.host, one.order) not in told]


def alike(transcripts: Iterable[Transcript]) -> list[list[Transcript]]:
    """Runs of one order that ended the same way on a host, together."""
    groups: dict[tuple[str, str, Status, str | None], list[Transcript]] = {}
    for one in transcripts:
        groups.setdefault((one.host, order_of(one), one.status, one.reason), []).append(one)
    return [*groups.values()]


def groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several hosts, orders and steps, or modules and rules, together; worst first."""
    found: dict[tuple[Status, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.status, _what(finding)), []).append(finding)
    return sorted(found.values(), key=lambda group: list(Status).index(group[0].status))


def _what(finding: Finding) -> str:
    """Of what a finding says, that which may be the same elsewhere."""
    if finding.answer is None:
        return finding.message
    if finding.witness:
        return (
            f"{finding.rule}: {finding.answer}"  # Its way is its own, but for that through the other vendor's module.
        )
    return why(finding)


def why(finding: Finding) -> str:
    """What the answer to a rule says, without the rule, its reason, and the module."""
    return finding.message.removeprefix(f"{finding.rule}: {finding.module}: ").partition(" (")[0]


def place(finding: Finding) -> str:
    """Host, order and step; of an answer to a rule, rule and module."""
    step = f"step {finding.step}" if finding.step else ""
    where = ", ".join(part for part in (finding.host, finding.order, step) if part)
    return where or f"{finding.rule}: {finding.module}"


def title(finding: Finding) -> str:
    """What happened, and where."""
    return f"{place(finding)}: {finding.message}" if finding.host else finding.message


def step_title(step: StepResult) -> str:
    """`load kvm_amd npt=0`, `smoke long-mode`, `selftest state_test`, `check footprint`."""
    parameters = [f"{name}={value}" for name, value in step.params.items()]
    what = [step.detail[key] for key in ("kind", "test", "what", "over") if key in step.detail]
    return " ".join([step.action, *what, *([step.module] if step.module else []), *parameters])


def findings_of(transcript: Transcript, step: StepResult | None) -> list[Finding]:
    """What was found in a step; None: in none of them."""
    numbers = {one.number for one in transcript.steps}
    if step is None:
        return [one for one in transcript.findings if one.step not in numbers]
    return [one for one in transcript.findings if one.step == step.number]


def step_outcome(transcript: Transcript, step: StepResult) -> tuple[Status, str | None]:
    """How a step counts, and, where it did not go as it should in a way that is known, the reason of that."""
    found = [one for one in findings_of(transcript, step) if one.status.counts]
    if not found:
        return step.status, None
    if mine := open_findings(found):
        return worst([step.status, *(one.status for one in mine)]), None
    return Status.PASS, "; ".join(dict.fromkeys(one.known for one in found if one.known is not None))


def answers(record: Record) -> dict[str, dict[str, Finding]]:
    """Rules, then the modules that they were asked of."""
    found: dict[str, dict[str, Finding]] = {}
    for one in record.findings:
        if one.rule is not None and one.module is not None and one.answer is not None:
            found.setdefault(one.rule, {})[one.module] = one
    return found


@dataclass(frozen=True)
class StageOutcome:
    """A stage without what has a place of its own: answers to rules, and orders on hosts."""

    stage: Stage
    status: Status
    said: str
    """Why it is so, where it counts."""
    found: tuple[Finding, ...]
    """That count."""


def stages(record: Record) -> Iterator[StageOutcome]:
    """Each stage; `load` only where it has no transcripts. One that did not come to its end is an ERROR."""
    for stage in record.stages:
        if stage.name == "load" and record.transcripts:
            continue
        mine = (one for one in counting(record) if one.host is None and one.answer is None)
        found = tuple(one for one in mine if one.id.partition(":")[0] == stage.name)
        status = worst(one.status for one in found) if found else stage.status or Status.ERROR
        if stage.name == "inspect" and stage.status and not found and not stage.reason:
            status = Status.PASS  # Where it counts, that is of the rules.
        said = stage.reason or ("" if stage.status else "it did not come to its end")
        yield StageOutcome(stage, status, found[0].message if found else said, found)


def rule_findings(record: Record) -> Iterator[Finding]:
    """What was found of rules in the objects, also of those that could not be asked."""
    return (one for one in record.findings if one.rule is not None and one.module is not None and one.host is None)


def rule_name(finding: Finding) -> str:
    """Its name among those of its module: of what answers no rule (a resource, an import) there may be several."""
    cause = finding.id.split(":", 3)[-1]
    return cause if cause == finding.rule else f"{finding.rule} {cause}"


def skipped_rules(record: Record) -> Counter[str]:
    """Why rules were not asked, and of how many."""
    return Counter(why(one) for one in record.findings if one.status == Status.SKIP)


def open_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Those that count."""
    return [one for one in findings if one.counts]


def unexplained(record: Record, shown: Status) -> tuple[Status, str] | None:
    """Where all that a report shows is no worse than `shown`: the outcome and reason of a run that did not pass."""
    word, status = verdict_of(record)
    if exit_status(status) == 0 or shown.counts:
        return None
    said = record.error or ("nothing was judged: all was skipped" if status == Status.SKIP else word)
    return (status if status.counts else Status.ERROR), said
