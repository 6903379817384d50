"""Protects the page and the mail of two runs: both sides are there, what moved is told at both places, what is alike is
counted, and nothing is taken for markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kbuild.cpus import Cpus
from kbuild.elf.tree.sides import flow_beside
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.record import HostFacts, Record
from kbuild.report.comparetext import render_compare_text
from kbuild.report.html.compare import render_compare_html
from kbuild.report.mail import WIDTH
from kbuild.report.write import read_compare_format
from kbuild.runs.compare import compare_records
from tests.unit.pages import checked
from tests.unit.records import CHANGES, HOSTILE, NOT_PRINTED, answer, failing, hostile, passing, record


def call(function: str, *calls: dict[str, Any], rule: str = "", arguments: Any = (), **more: Any) -> dict[str, Any]:
    """A call of the key `flow`."""
    events = [{"rule": rule, "event": "first", "what": "w"}] if rule else []
    fields = {
        "module": "kvm", "function": function, "symbol": function, "section": ".text", "place": "p", "source": None,
        "arguments": [*arguments], "how": "call", "tail": False, "candidate": False, "unresolved": None,
        "through": None, "events": events, "calls": [*calls],
    }  # fmt: skip
    return {**fields, **more}


def tree(*calls: dict[str, Any]) -> dict[str, Any]:
    """An init."""
    return {"module": "kvm-amd", "entry": "init", "function": "svm_init", "section": ".init.text", "calls": [*calls]}


def shape(calls: list[dict[str, Any]]) -> list[Any]:
    """Marks and names, with what is below."""
    found: list[Any] = []
    for one in calls:
        if "alike" in one:
            found.append(one["alike"])
            continue
        name = f"{one['change']} {(one['after'] or one['before'])['function']}"
        found.append((name, *shape(one["calls"])) if one["calls"] else name)
    return found


CREATE = call("kmem_cache_create", arguments=[[{"string": "pte_list_desc"}]])
SAME = [call(f"same{number}") for number in range(6)]


def test_what_moved_is_told_at_both_places_and_what_is_alike_is_counted() -> None:
    before = tree(*SAME, call("init", call("reset"), CREATE), call("setup", call("configure")), *SAME)
    after = tree(*SAME, call("init", call("reset")), call("setup", call("configure"), CREATE), *SAME)
    (found,) = flow_beside([before], [after])
    assert shape(found["calls"]) == [
        5,
        "same same5",
        ("same init", "same reset", "went kmem_cache_create"),
        ("same setup", "same configure", "came kmem_cache_create"),
        "same same0",
        5,
    ]
    went, came = found["calls"][2]["calls"][1], found["calls"][3]["calls"][1]
    assert (went["moved"], came["moved"]) == ("setup", "init")


def test_a_rule_that_has_an_event_at_what_differs_is_shown_wherever_it_has_one() -> None:
    far = call("far", *SAME, call("store", rule="touched"), call("other", rule="untouched"))
    create = {**CREATE, "events": [{"rule": "touched", "event": "then", "what": "w"}]}
    (found,) = flow_beside([tree(far, call("a", create))], [tree(far, call("a"))])
    assert shape(found["calls"]) == [
        ("same far", 5, "same same5", "same store", "same other"),
        ("same a", "went kmem_cache_create"),
    ]
    store, other = found["calls"][0]["calls"][2:]
    assert [one["rule"] for one in store["after"]["events"]] == ["touched"]
    assert other["after"]["events"] == []


def test_equal_trees_have_nothing_to_show() -> None:
    (found,) = flow_beside([tree(*SAME)], [tree(*SAME)])
    assert not found["differs"]
    assert found["calls"] == [{"alike": 6}]


def rendered(before: Record, after: Record, beside: Any = None, **more: Any) -> tuple[str, str]:
    """The page and the mail. `beside`: both trees of calls."""
    objects: dict[str, Any] = {
        "modules": None,
        "flow": [],
        "caches": [],
        "modules_problem": None,
        "modules_same": False,
        "config": [],
    }
    found = {**compare_records(before, after), **objects, **more}
    runs = [(Path("/nowhere"), before), (Path("/nowhere"), after)]
    data = {"flow": beside, "why": None if beside else HOSTILE}
    return render_compare_html(found, data, runs, "inv compare"), render_compare_text(found, runs, "inv compare A B")


def words(text: str) -> str:
    return " ".join(" ".join(checked(text).words).split())


def test_both_sides_are_on_the_page() -> None:
    flow = flow_beside([tree(call("a", CREATE), call("b"))], [tree(call("a"), call("b", CREATE))])
    before = record(passing(), findings=[answer("kvm-amd")])
    after = record(failing(), passing(), findings=[answer("kvm-amd", Status.FAIL, "violated", witness=("here",))])
    page, mail = rendered(before, after, flow)
    said = words(page)
    assert "FAIL something got worse" in said
    assert "rule a-rule: kvm-amd: proved → violated" in said
    assert 'kmem_cache_create("pte_list_desc") kvm; now in b()' in said
    assert 'kmem_cache_create("pte_list_desc") kvm; was in a()' in said
    assert "FAIL, something got worse" in mail
    assert "a-rule: kvm-amd: proved → violated" in " ".join(mail.split())
    assert "here" in mail


def test_nobody_else_is_told_where_a_machine_is() -> None:
    own = HostFacts("ssh", "", 1, 256, ("amd", "svm"), Cpus.OWN)
    runs = {
        host: record(passing(host="epyc"), hosts={"epyc": said}, machines={"epyc": facts})
        for host, said, facts in (
            ("lab7", "root@lab7 by SSH", own),
            ("lab8", "root@lab8 by SSH", own),
            ("qemu", "QEMU emulator version 7.2", HostFacts("qemu", "EPYC", 1, 256, ("amd", "svm"))),
        )
    }
    remote = "a machine of its own, reached by SSH"
    for before, after, said in (
        ("lab7", "lab8", f"host epyc: {remote} → another such machine"),
        ("qemu", "lab8", f"host epyc: QEMU emulator version 7.2 → {remote}"),
        ("lab7", "qemu", f"host epyc: {remote} → QEMU emulator version 7.2"),
    ):
        page, mail = rendered(runs[before], runs[after])
        assert said in " ".join(mail.split())
        assert remote in words(page)
        for text in (page, mail):
            assert not re.search("lab[78]", text)


def test_nothing_is_taken_for_markup() -> None:
    page, mail = rendered(record(passing()), hostile(), modules=CHANGES["modules"], modules_problem=HOSTILE)
    text = " ".join(checked(page).words)
    assert "<img src=x onerror=alert(2)>" in text
    assert "{{ 7 * 7 }}" in text
    assert not NOT_PRINTED.search(text)
    assert not NOT_PRINTED.search(mail)


def test_the_mail_keeps_its_columns() -> None:
    _, mail = rendered(record(passing()), hostile(), modules=CHANGES["modules"], flow=CHANGES["flow"])
    assert [line for line in mail.splitlines() if len(line) > WIDTH and " " in line.strip()] == []
    assert "+ g (.text): 7" in mail


def test_much_that_differs_is_folded() -> None:
    """Two kernels of other series differ everywhere: what counts is seen first."""
    before = record(passing(), findings=[answer(f"module{number}") for number in range(20)])
    after = record(passing(), findings=[answer("module0", Status.FAIL, "violated", witness=("here",))])
    calls = [call(f"f{number}") for number in range(600)]
    page, _ = rendered(before, after, flow_beside([tree(*calls)], [tree()]))
    assert len(re.findall(r'<details class="rule"[^>]* open>', page)) == 1
    assert not re.search(r'id="flow-kvm-amd-init" open', page)
    assert "19 with another answer that does not count, or no answer any more" in words(page)


def test_two_runs_have_no_junit() -> None:
    with pytest.raises(UserError, match="text or html"):
        read_compare_format("junit", "--format")
