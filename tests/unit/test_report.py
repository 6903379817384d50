"""Protects what a person and a script read of a run: nothing of it is lost, and nothing in it is markup."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from kbuild.outcome import Finding, Known, Status, to_json
from kbuild.record import Record, Stage
from kbuild.report.answers import MAX_WITNESS, render_answers, render_findings
from kbuild.report.consoles import console_on
from kbuild.report.data import summary
from kbuild.report.live import Bars, Lines
from kbuild.report.terminal import console_for, render
from kbuild.transcript import LogLine, StepResult, Transcript


def finding(order: str, message: str = "load kvm_amd: kernel BUG in svm_init", known: str | None = None) -> Finding:
    return Finding(
        id="load:kernel-bug:kvm_amd:x",
        status=Status.FAIL,
        message=message,
        evidence=("kernel BUG at a.c:1!", "RAX: 0000000000000000 RBX: 1", "RIP: 0010:svm_init+0x0/0x2 [kvm_amd]"),
        host="qemu-svm",
        order=order,
        step=4,
        reproduce=f"inv load --order {order}",
        known=known,
    )


def record(**more: Any) -> Record:
    step = StepResult(number=1, action="load", module="kvm_amd", status=Status.FAIL, log=[LogLine("text", seq=1)])
    transcripts = [
        Transcript(host="qemu-svm", order="one", status=Status.FAIL, steps=[step]),
        Transcript(host="qemu-svm", order="two", status=Status.MISS, reason="the host failed"),
        Transcript(host="bochs-vmx", order="two", status=Status.SKIP, reason="it needs svm"),
    ]
    fields: dict[str, Any] = {
        "id": "r",
        "task": "gate",
        "command": "inv gate",
        "started": "now",
        "transcripts": transcripts,
        **more,
    }
    return Record(**fields)


def shown(what: Record) -> str:
    stream = io.StringIO()
    render(what, stream)
    return stream.getvalue()


def test_each_outcome_is_explained() -> None:
    text = shown(record(verdict=Status.FAIL, findings=[finding("one")], ended="now"))
    assert text.startswith("FAIL")
    assert "FAIL qemu-svm, one, step 4: load kvm_amd: kernel BUG in svm_init" in text
    assert "again: inv load --order one" in text
    assert "MISS qemu-svm, two: the host failed" in text
    assert "skipped: two on bochs-vmx: it needs svm" in text
    assert "RIP: 0010:svm_init" in text
    assert "RAX:" not in text
    assert "1 more lines in the record" in text


def test_the_same_finding_in_several_places_is_shown_once() -> None:
    text = shown(record(verdict=Status.FAIL, findings=[finding("one"), finding("two"), finding("three")]))
    assert text.count("kernel BUG in svm_init") == 1
    assert "also: qemu-svm, two, step 4; qemu-svm, three, step 4" in text


def test_the_runs_of_an_order_are_one_row_and_what_ended_alike_is_told_once() -> None:
    def run(host: str, number: int, status: Status, reason: str | None = None) -> Transcript:
        return Transcript(host=host, order=f"all@{number}", status=status, reason=reason, reproduce=f"inv {number}")

    transcripts = [run("qemu-svm", number, Status.PASS) for number in range(200)]
    transcripts += [run("bochs-vmx", number, Status.PASS) for number in range(190)]
    transcripts += [run("bochs-vmx", number, Status.SKIP, "no such parameter") for number in range(190, 196)]
    transcripts += [run("bochs-vmx", number, Status.MISS, "the host failed") for number in range(196, 200)]
    transcripts += [Transcript(host="qemu-svm", order="one", status=Status.PASS)]
    text = shown(record(verdict=Status.MISS, transcripts=transcripts))
    assert re.search(r"^all +PASS 200 +MISS 4, PASS 190, SKIP 6 *$", text, re.MULTILINE)
    assert re.search(r"^one +PASS +- *$", text, re.MULTILINE)
    assert "MISS bochs-vmx, all@196 and 3 more of its runs: the host failed\n  again: inv 196" in text
    assert "skipped: 6 runs of all on bochs-vmx: no such parameter" in text
    assert len(text.splitlines()) < 20


def test_names_of_many_hosts_are_stacked_and_none_is_cut() -> None:
    names = [f"bochs-vmx-no-{what}" for what in ("ept", "shadow-vmcs", "unrestricted-guest", "pml", "npt", "vpid")]
    transcripts = [Transcript(host=name, order="an-order-with-a-long-name", status=Status.PASS) for name in names]
    text = shown(record(verdict=Status.PASS, transcripts=transcripts))
    head, _, row = text.partition("an-order-with-a-long-name")
    words = head.split()
    assert all(words.count(f"{part}-") == len(names) for part in ("bochs", "vmx", "no"))
    assert {"ept", "shadow-", "vmcs", "unrestricted-", "guest", "pml", "npt", "vpid"} <= {*words}
    assert "…" not in head
    assert row.splitlines()[0].split() == ["PASS"] * len(names)


def test_known_findings_are_shown_with_their_reason() -> None:
    known = Known("a:b:c:d", "it is mended in 7.3")
    text = shown(record(verdict=Status.PASS, findings=[finding("one", known="a reason")], known_not_seen=[known]))
    assert "known: load:kernel-bug:kvm_amd:x" in text
    assert "(a reason)" in text
    assert "known, but did not occur: a:b:c:d (it is mended in 7.3)" in text
    assert "FAIL qemu-svm" not in text


def test_what_is_known_of_both_vendors_for_the_same_reason_is_told_once() -> None:
    ids = [f"inspect:resource:kvm-{vendor}:it-{how}" for how in ("error", "exit") for vendor in ("amd", "intel")]
    findings = [
        Finding(id=name, status=Status.FAIL, message=f"of {name}", known=f"because of {name[-4:]}") for name in ids
    ]
    lines = [line for line in shown(record(verdict=Status.PASS, findings=findings)).splitlines() if "known" in line]
    assert [line.split(": ")[1] for line in lines] == [ids[0], ids[2]]
    assert all(line.endswith("; also of kvm-intel") for line in lines)


def ruled(rule: str, module: str, answer: str, why: str, witness: tuple[str, ...] = ()) -> Finding:
    """Of a rule, as the stage says it."""
    statuses = {"proved": Status.PASS, "violated": Status.FAIL, "unreached": Status.FAIL, "unknown": Status.ERROR}
    return Finding(
        id=f"inspect:rule:{module}:{rule}",
        status=statuses[answer],
        rule=rule,
        module=module,
        answer=answer,
        message=f"{rule}: {module}: {answer}: {why} (because of {rule})",
        witness=witness,
        reproduce=f"inv inspect --rules {rule}",
    )


def test_a_broken_rule_is_told_with_both_ends_of_its_witness_and_a_kept_one_is_not() -> None:
    way = tuple(f"branch {number}" for number in range(30))
    broken = [ruled("one", module, "violated", "b() may come before a()", way) for module in ("kvm-amd", "kvm-intel")]
    text = shown(record(verdict=Status.FAIL, findings=[*broken, ruled("two", "kvm-amd", "proved", "it never does")]))
    assert text.count("may come before") == 1
    assert "also: one: kvm-intel\n" in text
    assert text.count("branch ") == 12
    assert "branch 0\n" in text
    assert "branch 29\n" in text, "it ends with what happened too early"
    assert "… 18 more lines in the record" in text
    assert "again: inv inspect --rules one" in text
    assert "it never does" not in text


def test_rules_that_break_for_one_reason_are_told_once() -> None:
    """After a BUG() in its init function nothing of what a vendor module's rules are about can happen."""
    unreached = [ruled(rule, "kvm-amd", "unreached", "misc_register() cannot happen") for rule in ("one", "two")]
    unknown = [ruled(rule, "kvm-amd", "unknown", "what is called there is not known: f+0x1") for rule in ("x", "y")]
    text = shown(record(verdict=Status.FAIL, findings=[*unreached, *unknown]))
    assert text.count("cannot happen") == 1
    assert "also: two: kvm-amd" in text
    assert text.count("f+0x1") == 1
    assert "also: y: kvm-amd" in text


def test_a_rule_that_is_known_to_be_broken_is_one_line() -> None:
    broken = msgspec.structs.replace(
        ruled("one", "kvm-amd", "violated", "b() may come before a()", ("x",)), known="as it was"
    )
    text = shown(record(verdict=Status.PASS, findings=[broken]))
    assert "known: inspect:rule:kvm-amd:one: violated: b() may come before a() (as it was)\n" in text


def test_rules_that_nobody_could_be_asked_are_told_in_one_line() -> None:
    """Where init functions are gone, no module is a vendor module: that must not look like a pass."""
    skipped = [
        Finding(
            id=f"inspect:rule:set:{rule}",
            status=Status.SKIP,
            rule=rule,
            module="set",
            message=f"{rule}: set: no module of the set is a vendor module (because of {rule})",
        )
        for rule in ("one", "two")
    ]
    text = shown(record(verdict=Status.PASS, findings=skipped))
    assert "skipped: 2 rules: no module of the set is a vendor module\n" in text


def test_text_from_elsewhere_is_no_markup() -> None:
    text = shown(record(verdict=Status.FAIL, findings=[finding("one", message="[bold]x[/bold] [/] [link=http://a]")]))
    assert "[bold]x[/bold] [/] [link=http://a]" in text


def test_text_from_elsewhere_does_not_move_the_cursor(tmp_path: Path) -> None:
    nasty = "debugfs/\x1b[2J\x9b1A\x1b]0;x\x07"
    steps = [StepResult(number=1, action="check", status=Status.FAIL, reason=nasty)]
    some = [Transcript(host="qemu-svm", order=nasty, status=status, steps=steps, reason=nasty) for status in Status]
    stage = Stage("load", Status.FAIL, summary=nasty)
    text = shown(record(verdict=Status.FAIL, findings=[finding("one", nasty)], transcripts=some, stages=[stage]))
    assert "debugfs/\\x1b[2J\\x9b1A\\x1b]0;x" in text
    assert not set(text) & {"\x1b", "\x9b", "\x07"}
    file = tmp_path / "log"
    with file.open("w") as stream:
        Lines(stream).order("qemu-svm", nasty, Status.FAIL, nasty)
    assert "\x1b" not in file.read_text()
    terminal = io.StringIO()
    progress = Progress(TextColumn("{task.description}"), console=console_on(terminal, force_terminal=True))
    with progress:
        Bars(progress).order("qemu-svm", nasty, Status.FAIL, nasty)
    assert "\x1b[2J" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"verdict": Status.PASS, "ended": "now"}, "PASS"),
        ({"interrupted": "load", "ended": "now"}, "interrupted in load"),
        ({"error": "wrong", "ended": "now"}, "not judged"),
        ({}, "not finished"),
    ],
)
def test_a_run_without_a_verdict_never_looks_like_a_pass(fields: dict[str, object], word: str) -> None:
    assert shown(record(**fields)).startswith(word)


def test_json_is_as_the_contract_says() -> None:
    data = msgspec.json.decode(to_json(summary(record(verdict=Status.FAIL, findings=[finding("one")]))))
    assert {"verdict", "findings", "transcripts"} <= data.keys()
    assert {"host", "order", "status", "steps"} <= data["transcripts"][0].keys()
    (step,) = data["transcripts"][0]["steps"]
    assert {"action", "module", "errno", "expected", "status", "seconds", "log"} <= step.keys()
    assert (step["errno"], step["log"][0]["text"]) == (None, "text")
    assert {"id", "status", "message", "known"} <= data["findings"][0].keys()


def test_one_line_per_stage_and_order_in_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        lines = Lines(stream)
        lines.begin("build")
        lines.progress("build", 1, 2, "CC x.o", 1.0)
        lines.end(Stage("build", Status.PASS, 1.5, "built"))
        lines.order("qemu-svm", "one", None, None)
        lines.order("qemu-svm", "one", Status.FAIL, "why")
        lines.end(Stage("load", None, 0.1, reason="the user's error is printed by itself"))
    assert path.read_text().splitlines() == [
        "PASS  build         1.5 s  built",
        "FAIL  load       qemu-svm one: why",
    ]


def test_a_long_boot_says_so_once_in_a_log_and_all_the_time_on_a_terminal() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for boot in range(2):
        for seconds in range(0, 40, 4):
            lines.boot("bochs-vmx", float(seconds), 60.0)
            lines.boot("qemu-svm", float(seconds) / 10, None)
        assert stream.getvalue().count("bochs-vmx boots, 12 of about 60 s") == boot + 1
    assert stream.getvalue().count("\n") == 2

    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(TextColumn("{task.description}: {task.fields[what]}"), console=terminal) as progress:
        bars = Bars(progress)
        for shown in (3.0, 35.0):
            bars.boot("bochs-vmx", shown, 60.0)
            assert [task.fields["what"] for task in progress.tasks] == [f"boots, {shown:.0f} of about 60 s"]
        bars.order("bochs-vmx", "vendor-alone", None, None)
        assert [task.fields["what"] for task in progress.tasks] == ["vendor-alone"]


def answer(rule: str, module: str, what: str | None, status: str, witness: int = 0) -> dict[str, Any]:
    return {
        "id": f"inspect:rule:{module}:{rule}",
        "rule": rule,
        "module": module,
        "answer": what,
        "status": status,
        "known": None,
        "message": f"{rule}: {module}: {what}: [bold]why[/bold]",
        "witness": [f"line {number}" for number in range(witness)],
    }


def test_answers_are_a_table_and_only_what_is_wrong_is_told() -> None:
    stream = io.StringIO()
    console = console_for(stream)
    findings = [
        answer("first-rule", "kvm-amd", "proved", "PASS"),
        answer("first-rule", "kvm-intel", "violated", "FAIL", witness=100),
        answer("second-rule", "kvm", "unreached", "PASS"),
        answer("third-rule", "set", None, "SKIP"),
    ]
    render_answers(findings, console)
    render_findings(findings, console)
    text = stream.getvalue()
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["rule", "kvm", "kvm-amd", "kvm-intel"],
        ["first-rule", "-", "proved", "violated"],
        ["second-rule", "unreached", "-", "-"],
    ]
    assert "FAIL first-rule: kvm-intel: violated: [bold]why[/bold]" in text
    assert "SKIP third-rule" in text
    assert "first-rule: kvm-amd" not in text
    # Where it begins, and where it ends.
    assert "line 0\n" in text
    assert "line 99\n" in text
    assert f"… {100 - MAX_WITNESS} more lines" in text


def test_nothing_is_said_of_rules_where_none_was_asked() -> None:
    stream = io.StringIO()
    render_answers([answer("crc-mismatch", "kvm", None, "FAIL")], console_for(stream))
    assert stream.getvalue() == ""
