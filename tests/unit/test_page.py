"""Protects the page of a run: it says the verdict first, loads nothing, and takes nothing that it shows for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kbuild.detail import look_closer
from kbuild.outcome import Finding, Status, to_json
from kbuild.record import Record
from kbuild.report.html.page import render_html
from kbuild.traces import Call, Observation, Part, Trace
from kbuild.transcript import StepResult
from tests.unit.pages import Page, checked
from tests.unit.records import HOSTILE, NOT_PRINTED, STOPPED, answer, failing, hostile, passing, record


def page(what: Record, folder: Path = Path("/nowhere")) -> Page:
    """The page of a run."""
    return checked(render_html(what, folder))


def test_page_says_the_verdict_first() -> None:
    words = " ".join(" ".join(page(record(passing(), failing())).words).split())
    assert words.index("FAIL debian:6.1") < words.index("What was judged")
    assert "kernel BUG at a.c:1!" in words
    assert "/p/scripts/inv load --modules /runs/r/artifacts --host qemu-svm --order bad" in words
    assert "PASS" in words


def test_page_says_which_rules_were_not_asked_and_why() -> None:
    text = "a-rule: set: no module of the set is a vendor module"
    skipped = Finding(id="inspect:rule:set:a-rule", rule="a-rule", module="set", status=Status.SKIP, message=text)
    words = " ".join(page(record(passing(), findings=[skipped])).words)
    assert "1 rule: no module of the set is a vendor module" in words


def test_page_takes_nothing_for_markup() -> None:
    found = page(hostile())
    text = " ".join(found.words)
    assert "<img src=x onerror=alert(2)>" in text, "it is shown, as text"
    assert "{{ 7 * 7 }}" in text
    assert "\\x1b[31m" in text
    assert not NOT_PRINTED.search(text)


@pytest.mark.parametrize("what", STOPPED.values(), ids=STOPPED)
def test_page_of_a_run_that_was_stopped_does_not_say_pass(what: Record) -> None:
    title = re.findall(r"<title>(.*?)</title>", render_html(what, Path("/nowhere")))[0]
    assert not title.startswith(("PASS", "DONE"))
    page(what)


def test_page_shows_rules_beside_what_was_seen(tmp_path: Path) -> None:
    seen = Observation(rule="a-rule", module="kvm_amd", seen="broken", why="b() came first", answer="proved")
    traced = StepResult(number=1, action="trace", status=Status.PASS, detail={"file": "qemu-svm/trace.json"})
    call = Call(function="svm_init", module="kvm_amd", task="init-1", depth=0, us=1, entered=0)
    (tmp_path / "hosts/qemu-svm").mkdir(parents=True)
    trace = Trace(parts=[Part(action="load", module="kvm_amd", calls=[call])])
    (tmp_path / "hosts/qemu-svm/trace.json").write_bytes(to_json(trace))
    what = record(passing(observed=[seen], steps=[traced]), findings=[answer("kvm-amd")])
    words = " ".join(" ".join(page(what, tmp_path).words).split())
    assert "proved · broken" in words
    assert "b() came first" in words
    assert "svm_init()" in words


def test_page_reads_no_trace_outside_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_bytes(to_json(Trace(blind=["secret"], parts=[Part(action="x", module="secret")])))
    (tmp_path / "run/hosts").mkdir(parents=True)
    step = StepResult(number=1, action="trace", status=Status.PASS, detail={"file": "../../secret.json"})
    assert "secret:" not in " ".join(page(record(passing(steps=[step])), tmp_path / "run").words)


CALL: dict[str, Any] = {
    "module": "kernel", "function": "f", "symbol": "f", "section": None, "place": "init+1", "source": None,
    "arguments": [[{"string": HOSTILE}]], "how": "call", "tail": False, "candidate": False, "unresolved": None,
    "through": None, "events": [], "calls": [],
}  # fmt: skip


def code(**more: Any) -> bytes:
    """What is beside the record for a page."""
    counts = dict.fromkeys(("functions", "kernel_functions", "calls", "unresolved"), 1)
    event = {"rule": "a-rule", "event": "first", "what": HOSTILE}
    root = {**CALL, "module": "kvm-amd", "entry": "init", "counts": counts, "unresolved": [], "cut": []}
    root["calls"] = [CALL, CALL, {**CALL, "events": [event], "calls": [CALL]}]
    function = {"name": HOSTILE, "section": ".text", "part": "core", "size": 100}
    section = {"name": HOSTILE, "size": 300, "part": "init", "flags": "AX"}
    module = {"name": "kvm-amd", "sections": [section], "functions": [function], "candidates": [], "cold": 0}
    return msgspec.json.encode({"flow": [root], "modules": [module], "why": None, **more})


def test_page_shows_the_init_flow_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "code.json").write_bytes(code())
    found = page(record(passing(), findings=[answer("kvm-amd")]), tmp_path)
    words = " ".join(" ".join(found.words).split())
    assert "× 2" in words, "alike calls one after the other are one"
    assert "first of a-rule" in words
    assert "proved" in words
    assert "300" in words


def test_a_tree_of_any_depth_makes_a_page(tmp_path: Path) -> None:
    deep = CALL
    for _ in range(400):
        deep = {**CALL, "calls": [deep]}
    data = msgspec.json.decode(code(), type=dict[str, Any])
    data["flow"][0]["calls"] = [deep]
    (tmp_path / "code.json").write_bytes(msgspec.json.encode(data))
    assert "1 more call:" in " ".join(page(record(passing(), findings=[answer("kvm-amd")]), tmp_path).words)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null"])
def test_page_does_without_what_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "code.json").write_bytes(data)
    page(record(passing()), tmp_path)


def test_page_says_why_modules_are_not_shown(tmp_path: Path) -> None:
    assert "Not shown: the modules were not looked at" in " ".join(page(record(passing()), tmp_path).words)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/kvm.ko").write_bytes(b"no module")
    what = record(passing(), artifacts={"kvm.ko": "b" * 64})
    look_closer(tmp_path, what)
    assert "artifacts/kvm.ko" in json.loads((tmp_path / "code.json").read_text())["why"]
    assert "artifacts/kvm.ko" in " ".join(page(what, tmp_path).words)


def test_page_shows_what_another_run_has_in_another_size(tmp_path: Path) -> None:
    now, before = tmp_path / "now", tmp_path / "before"
    for folder, size in ((now, 100), (before, 160)):
        folder.mkdir()
        data = msgspec.json.decode(code(), type=dict[str, Any])
        (module,) = data["modules"]
        module["sections"][0]["size"] = size
        module["functions"][0]["size"] = size // 2
        module["functions"].append({**module["functions"][0], "name": f"only{size}", "size": 7})
        (folder / "code.json").write_bytes(msgspec.json.encode(data))
    other = record(passing(), id="20250101-000000-0000")
    found = checked(render_html(record(passing()), now, (before, other)))
    words = " ".join(" ".join(found.words).split())
    assert "what differs from run 20250101-000000-0000" in words
    assert "100 −60" in words, "the module, in all"
    assert "50 −30" in words, "the function"
    assert "only100 came 7 +7" in words
    assert "only160 went 0 −7" in words
    assert "what differs" not in " ".join(page(record(passing()), now).words)
    bare = checked(render_html(record(passing()), now, (tmp_path / "baseline.json", other)))
    assert "keeps no modules that they could be held against" in " ".join(bare.words)
