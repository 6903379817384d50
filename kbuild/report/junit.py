"""A run as JUnit XML, for CI systems: suites for stages and rules, and one for each host with a case for each order.

Its elements and attributes are those of the schema of Jenkins' xUnit plugin (junit-10.xsd). Something fails or errs
here exactly if the run's exit status is not 0: where no case says why, there is one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kbuild.outcome import Finding, Status, worst
from kbuild.report import clean, gist

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import StepResult, Transcript

MAX_EVIDENCE = 60
MAX_LOG = 120
"""Lines of an order's log."""


@dataclass
class Case:
    """What passed or did not."""

    name: str
    classname: str
    seconds: float
    status: Status
    message: str = ""
    """Where the status is not PASS."""
    body: Sequence[str] = ()
    log: Sequence[str] = ()


@dataclass
class Suite:
    """Cases that belong together."""

    name: str
    cases: list[Case] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)


def render_junit(record: Record) -> str:
    """The XML document."""
    suites = [_stages(record), _rules(record), *_hosts(record)]
    if (more := gist.unexplained(record, worst(case.status for suite in suites for case in suite.cases))) is not None:
        suites[0].cases.append(Case("verdict", "stages", 0, *more))
    return document(record.id, record.started, suites, sum(stage.seconds for stage in record.stages))


def document(name: str, started: str, suites: Sequence[Suite], seconds: float) -> str:
    """The XML of these suites, of those that have cases."""
    root = ET.Element("testsuites", name=f"kvm-kbuild {clean.one_line(name)}")
    for suite in suites:
        if suite.cases:
            root.append(_suite(suite, started))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    root.set("time", _seconds(seconds))
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _stages(record: Record) -> Suite:
    suite = Suite("stages", properties=_properties(record))
    for one in gist.stages(record):
        body = [line for finding in one.found for line in told(finding)]
        stage = one.stage
        suite.cases.append(Case(stage.name, "stages", stage.seconds, one.status, one.said, body, [stage.summary]))
    return suite


def _rules(record: Record) -> Suite:
    suite = Suite("rules")
    for one in gist.rule_findings(record):
        case = Case(gist.rule_name(one), f"rules.{one.module}", 0, one.status, one.message, told(one))
        if one.known is not None:
            case.status, case.message = Status.SKIP, f"known: {one.known}"
        suite.cases.append(case)
    return suite


def _hosts(record: Record) -> Iterator[Suite]:
    for host in gist.hosts(record):
        about = {"host": gist.machine(record.hosts.get(host, "not there"), record.machines.get(host))}
        suite = Suite(host, properties={**about, "kernel": record.kernel or ""})
        suite.cases = [_order(one) for one in record.transcripts if one.host == host]
        yield suite


def _order(one: Transcript) -> Case:
    found = gist.open_findings(one.findings)
    message = one.reason or (found[0].message if found else "")
    body = [line for finding in found for line in told(finding)]
    if not found and one.status.counts and one.reproduce:
        body = [f"again: {one.reproduce}"]
    log = [line for step in one.steps for line in _step(one, step)]
    return Case(one.order, one.host, one.seconds, one.status, message, body, log)


def _step(one: Transcript, step: StepResult) -> Iterator[str]:
    status, known = gist.step_outcome(one, step)
    result = f", {step.errno}" if step.errno else ""
    yield f"{step.number}. {gist.step_title(step)}: {status}{result}{f' (known: {known})' if known is not None else ''}"
    for line in step.log:
        yield from (f"    {text}" for text in line.text.split("\n"))


def told(finding: Finding) -> list[str]:
    """What is said of a finding, in lines."""
    again = [f"again: {finding.reproduce}"] if finding.reproduce else []
    evidence = clean.lines(finding.witness or finding.evidence, MAX_EVIDENCE)
    expired = [f"was known until {finding.expired}"] if finding.expired else []
    return [f"{finding.status}: {gist.title(finding)}", f"id: {finding.id}", *expired, *evidence, *again]


def _properties(record: Record) -> dict[str, str]:
    tree = {f"tree.{key}": value for key, value in record.tree.items()}
    tools = {f"tool.{key}": value for key, value in record.tools.items() if key not in ("host", "pid")}
    digests = {f"sha256.{key}": value for key, value in record.artifacts.items()}
    profile = {"profile": record.profile or "", "flavour": record.flavour or "", "kernel": record.kernel or ""}
    about = {"run": record.id, "command": record.command, "verdict": gist.verdict_of(record)[0]}
    return {key: value for key, value in {**about, **profile, **tree, **tools, **digests}.items() if value}


def _suite(suite: Suite, started: str) -> ET.Element:
    element = ET.Element("testsuite", name=clean.one_line(suite.name), timestamp=started[:19])
    kinds = [_kind(case.status) for case in suite.cases]
    element.set("tests", str(len(kinds)))
    for key, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(key, str(kinds.count(kind)))
    element.set("time", _seconds(sum(case.seconds for case in suite.cases)))
    if suite.properties:
        properties = ET.SubElement(element, "properties")
        for name, value in suite.properties.items():
            ET.SubElement(properties, "property", name=clean.one_line(name), value=clean.one_line(value))
    for case in suite.cases:
        element.append(_case(case))
    return element


def _case(case: Case) -> ET.Element:
    names = {"name": clean.one_line(case.name), "classname": clean.one_line(case.classname)}
    element = ET.Element("testcase", names, time=_seconds(case.seconds))
    kind = _kind(case.status)
    if kind is not None:
        message = clean.one_line(case.message) or str(case.status)
        result = ET.SubElement(element, kind, message=message, type=str(case.status))
        result.text = "\n".join(clean.lines(case.body, MAX_EVIDENCE * 4)) or None
    if any(case.log):
        ET.SubElement(element, "system-out").text = "\n".join(clean.lines(case.log, MAX_LOG))
    return element


def _kind(status: Status) -> str | None:
    """The element that stands for an outcome; None: it passed."""
    if status == Status.FAIL:
        return "failure"
    if status.counts:
        return "error"
    return "skipped" if status == Status.SKIP else None


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"
