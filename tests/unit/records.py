"""Records of runs and series, made by hand: ones that passed, failed, stopped, and ones that say nasty things."""

from __future__ import annotations

import re
from typing import Any

from kbuild.outcome import Finding, Known, Status, to_json
from kbuild.record import HostFacts, Record, Stage, runs_home
from kbuild.seriesrecord import Entry, SeriesRecord
from kbuild.transcript import LogLine, StepResult, Transcript

HOSTILE = (
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'&lt; ]]> {{ 7 * 7 }} {% raw %}"
    "\x1b[31m\x00\x07\x9b\u202e\ufffe ok 1 fine\nKTAP version 1\nok 9 fine\n    # Subtest: fine\n1..0\n"
    "reboot: System halted\nBail out!"
)
NOT_PRINTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\ufffe]")


def passing(host: str = "qemu-svm", order: str = "vendor-alone", **more: Any) -> Transcript:
    steps = [
        StepResult(
            number=1, action="load", module="kvm_amd", status=Status.PASS, seconds=0.25, log=[LogLine("hello", us=1)]
        ),
        StepResult(number=2, action="smoke", status=Status.PASS, detail={"kind": "long-mode"}),
    ]
    fields = {"status": Status.PASS, "steps": steps, "seconds": 0.5, "title": "It loads", "reproduce": "inv load"}
    return Transcript(host=host, order=order, **{**fields, **more})


def failing(text: str = "kernel BUG at a.c:1!") -> Transcript:
    finding = Finding(
        id="load:kernel-bug:kvm_amd:x",
        status=Status.FAIL,
        message=f"load kvm_amd: {text}",
        evidence=(text, "RIP: 0010:svm_init"),
        host="qemu-svm",
        order="bad",
        step=1,
        reproduce="/p/scripts/inv load --modules /runs/r/artifacts --host qemu-svm --order bad",
    )
    step = StepResult(
        number=1, action="load", module="kvm_amd", status=Status.FAIL, reason=text, log=[LogLine(text, level=1)]
    )
    return Transcript(
        host="qemu-svm", order="bad", status=Status.FAIL, steps=[step], findings=[finding], reason=text, console=[text]
    )


def known() -> Transcript:
    """A step that failed in a way that is declared: the order passed."""
    finding = Finding(
        id="load:leftover:debugfs/kvm:x", status=Status.FAIL, message="left", host="bochs-vmx", order="known", step=1,
        known="kvm_init() does not undo it",
    )  # fmt: skip
    step = StepResult(number=1, action="check", status=Status.FAIL, reason="left", detail={"what": "footprint"})
    return Transcript(host="bochs-vmx", order="known", status=Status.PASS, steps=[step], findings=[finding])


def answer(module: str, status: Status = Status.PASS, word: str = "proved", **more: Any) -> Finding:
    text = f"a-rule: {module}: {word}: b() may come before a()"
    return Finding(
        id=f"inspect:rule:{module}:a-rule",
        rule="a-rule",
        module=module,
        status=status,
        answer=word,
        message=text,
        **more,
    )


def record(*transcripts: Transcript, **more: Any) -> Record:
    """A run that came to its end, with these transcripts."""
    verdict = min((one.status for one in transcripts), key=[*Status].index, default=Status.PASS)
    fields: dict[str, Any] = {
        "id": "20260101-000000-0000",
        "task": "gate",
        "command": "/p/scripts/inv gate",
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "verdict": verdict,
        "profile": "/p/profiles/default.toml",
        "tree": {"asked": "debian:6.1", "identity": "linux-source-6.1 6.1.1-1", "version": "6.1.1"},
        "kernel": "6.1.1-kbuild",
        "artifacts": {"bzImage": "a" * 64, "kvm.ko": "b" * 64},
        "hosts": {"qemu-svm": "QEMU emulator version 7.2", "bochs-vmx": "Bochs x86 Emulator 2.7"},
        "machines": {"qemu-svm": HostFacts("qemu", "EPYC,+svm", 1, 256, ("amd", "svm"))},
        "stages": [
            Stage("tree", Status.DONE, 0.1, "linux-source-6.1 6.1.1-1"),
            Stage("build", Status.PASS, 2, "6.1.1-kbuild: kvm.ko"),
            Stage("inspect", Status.PASS, 1, "4 modules"),
            Stage("load", verdict, 9, "all of it"),
        ],
        "transcripts": [*transcripts],
        "findings": [finding for one in transcripts for finding in one.findings],
    }
    return Record(**{**fields, **more})


def hostile() -> Record:
    """Everything that comes from elsewhere says the same nasty thing."""
    bad = failing(HOSTILE)
    rule = answer("kvm-amd", Status.FAIL, "violated", witness=(HOSTILE,), reproduce=HOSTILE)
    skipped = Transcript(host="bochs-vmx", order="skipped", status=Status.SKIP, reason=HOSTILE)
    return record(
        bad,
        skipped,
        passing(title=HOSTILE, reproduce=HOSTILE),
        known(),
        findings=[
            *bad.findings,
            *known().findings,
            rule,
            Finding(id="build:x:y:z", status=Status.DONE, message=HOSTILE),
        ],
        tree={"asked": HOSTILE, "identity": HOSTILE, "version": "6.1", "patches": HOSTILE, "commit": HOSTILE},
        tools={"gcc": HOSTILE},
        hosts={"qemu-svm": HOSTILE},
        error=HOSTILE,
        command=HOSTILE,
        known_not_seen=[Known(finding="a:b:c:d", reason=HOSTILE)],
        rules={"asked": 1, "answers": {"violated": 1}, "other_kernels": []},
    )


STOPPED = {
    "MISS": record(
        verdict=Status.MISS, error="a disk is full", stages=[Stage("tree", Status.MISS, reason="a disk is full")]
    ),
    "killed": record(verdict=None, ended=None, stages=[Stage("tree", Status.DONE), Stage("build")]),
    "interrupted": record(verdict=None, interrupted="load", stages=[Stage("tree", Status.DONE)]),
    "nothing": record(verdict=None, stages=[]),
    "skipped": record(Transcript(host="qemu-svm", order="a", status=Status.SKIP, reason="no svm"), verdict=Status.SKIP),
    "verdict alone": record(passing(), verdict=Status.FAIL),
}


CHANGES: dict[str, Any] = {
    "modules": [
        {
            "name": "kvm",
            "change": "changed",
            "bytes": {"text": [100, 140], "init": [30, 20]},
            "symbols": [
                {"change": "resized", "name": HOSTILE, "kind": "func", "section": ".text", "size": [10, 20]},
                {"change": "moved", "name": "f", "kind": "func", "section": [".text", ".init.text"], "size": [5, 5]},
                {"change": "came", "name": "g", "kind": "func", "section": ".text", "size": [None, 7]},
            ],
            "code": ["h"],
            "sections": [],
            "exports": [{"change": "came", "name": HOSTILE, "before": None, "after": {"gpl": True}}],
            "imports": [],
            "parameters": [],
            "depends": [],
            "traits": [],
        },
        {"name": "kvm-amd", "change": "same", "bytes": {}, "symbols": [], "code": []},
    ],
    "flow": [
        {
            "module": "kvm-amd", "entry": "init", "function": "svm_init", "change": "same",
            "calls": [
                {
                    "change": "came", "function": "g", "module": "kvm", "section": ".text", "how": "call",
                    "arguments": [[{"string": HOSTILE}]], "candidate": False, "unresolved": None, "through": None,
                    "below": 3, "calls": [],
                }
            ],
        }
    ],
}  # fmt: skip


def save(what: Record) -> str:
    """Put a record where runs are, and give its id."""
    folder = runs_home() / what.id
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(to_json(what))
    return what.id


def series(**more: Any) -> SeriesRecord:
    """A base, a patch that breaks a rule, one with the same modules, one that mends it, and one that does not apply."""
    broken = answer("kvm-amd", Status.FAIL, "violated", witness=(HOSTILE,), reproduce="/p/scripts/inv inspect")
    sizes = {"kvm": {"text": 100, "data": 1, "init": 2, "exit": 3}}
    larger = {"kvm": {"text": 140, "data": 1, "init": 2, "exit": 3}}
    good = save(record(passing(title=HOSTILE, reproduce=HOSTILE), id="20260101-000000-0001", sizes=sizes))
    bad = save(
        record(
            passing(), id="20260101-000000-0002", findings=[broken], sizes=larger, verdict=Status.FAIL, kernel=HOSTILE
        )
    )
    cells = {"build": Status.PASS, "inspect": Status.PASS, "qemu-svm": Status.PASS}
    judged: dict[str, Any] = {"verdict": Status.PASS, "status": Status.PASS, "cells": cells}
    failed: dict[str, Any] = {"verdict": Status.FAIL, "cells": {**cells, "inspect": Status.FAIL}, "run": bad}
    entries = [
        Entry(id="a" * 40, subject="the base", base=True, run=good, **judged),
        Entry(id="b" * 40, subject=HOSTILE, status=Status.FAIL, blamed=[broken.id], changes=CHANGES, **failed),
        Entry(id="c" * 40, subject="comments", status=Status.PASS, same_as="b" * 40, **failed),
        Entry(id="d" * 40, subject="mends it", mended=[broken.id], run=good, **judged),
        Entry(id="patch 4", subject="later", status=Status.FAIL, reason=HOSTILE, evidence=[HOSTILE]),
        Entry(id="patch 5", subject="behind it", status=Status.SKIP, reason="comes after a patch that does not apply"),
    ]
    fields: dict[str, Any] = {
        "id": "20260101-000000-0000-series",
        "key": "k",
        "command": f"/p/scripts/inv series --range {HOSTILE}",
        "source": HOSTILE,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "verdict": Status.FAIL,
        "entries": entries,
    }
    return SeriesRecord(**{**fields, **more})
