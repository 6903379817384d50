"""Protects the reports of a series: each says who is to blame for what, a series that did not come to its end is no
pass in any, and nothing that a commit, a mail or a guest says becomes markup, a result or a command of a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import kcidb_io
import pytest

from kbuild.outcome import Status
from kbuild.record import runs_home
from kbuild.report.html.series import render_series_html
from kbuild.report.mail import WIDTH
from kbuild.report.seriesci import render_series_junit, render_series_kcidb, render_series_ktap
from kbuild.report.seriestext import render_series_text
from kbuild.report.write import FORMATS, render_series_as
from kbuild.seriesrecord import Entry
from tests.unit.pages import checked
from tests.unit.records import CHANGES, NOT_PRINTED, series
from tests.unit.test_reports import valid_junit

BLAMED = "inspect:rule:kvm-amd:a-rule"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def words(text: str) -> str:
    return " ".join(" ".join(checked(text).words).split())


def test_the_page_says_who_is_to_blame_and_shows_the_way() -> None:
    text = render_series_html(series())
    said = words(text)
    assert said.index("FAIL") < said.index("To blame for")
    assert "bbbbbbbbbbbb to blame" in said
    assert "dddddddddddd mends what was there" in said
    assert BLAMED in said
    assert "witness, 7 lines" in said, "the whole way, folded"
    assert "The same modules as bbbbbbbbbbbb" in said
    assert "comes after a patch that does not apply" in said
    assert "/p/scripts/inv inspect" in said
    assert re.search(r"<details[^>]*><summary>witness", text)
    assert "<details open" not in text.partition('id="commit-1"')[0], "nothing is long before one looks"


def test_the_page_shows_what_each_commit_changed() -> None:
    found = checked(render_series_html(series()))
    said = " ".join(" ".join(found.words).split())
    assert "text +40, init −10" in said
    assert "came, .text" in said
    assert ".text → .init.text" in said
    assert "and 3 more below" in said
    assert {f"commit-{number}" for number in range(6)} <= {*found.ids}


def test_the_page_takes_nothing_for_markup() -> None:
    found = checked(render_series_html(series()))
    text = " ".join(found.words)
    assert "<img src=x onerror=alert(2)>" in text, "it is shown, as text"
    assert "{{ 7 * 7 }}" in text
    assert not NOT_PRINTED.search(text)


def test_a_page_of_any_number_of_commits_can_be_opened() -> None:
    """A thousand, each of which changes all: what there is no room for is counted, and nobody waits for 50 MB."""
    what = series()
    change = {"change": "came", "name": "f" * 60, "kind": "func", "section": ".text", "size": [None, 7]}
    tree = CHANGES["flow"][0]
    changes = {
        "modules": [{**CHANGES["modules"][0], "symbols": [change] * 300}],
        "flow": [{**tree, "calls": tree["calls"] * 200}],
    }
    base, *_ = what.entries
    what.entries = [base] + [Entry(id=f"{n:040x}", subject="s", changes=changes) for n in range(1000)]
    text = render_series_html(what)
    assert len(text) < 25 << 20
    assert "300 more in the record" in text, "of the last ones"
    checked(text)


def test_a_run_that_is_gone_is_said_to_be() -> None:
    what = series()
    for path in runs_home().glob("*2/record.json"):
        path.unlink()
    assert "cannot be read" in words(render_series_html(what))
    for form in FORMATS:
        assert render_series_as(form, what)


def test_the_mail_keeps_its_columns_and_names_the_commit() -> None:
    text = render_series_text(series())
    said = " ".join(text.split())
    assert "Blamed on bbbbbbbbbbbb" in said
    assert f"id: {BLAMED}" in said
    assert f"{BLAMED}, by dddddddddddd" in said
    assert "no ground for a Tested-by line" in said
    assert not NOT_PRINTED.search(text)
    assert [line for line in text.splitlines() if len(line) > WIDTH and " " in line.strip()] == []


def test_the_mail_testifies_only_to_what_passed_in_each_commit() -> None:
    what = series(verdict=Status.PASS)
    what.entries = [what.entries[0], what.entries[3]]
    assert "Tested-by: NAME <ADDRESS> # emulated: qemu-svm" in render_series_text(what)
    what.entries[1].cells = {**what.entries[1].cells, "qemu-svm": Status.SKIP}
    assert "no ground for a Tested-by line" in render_series_text(what)


def test_junit_has_a_case_for_each_commit() -> None:
    cases = [*valid_junit(render_series_junit(series())).iter("testcase")]
    kinds = [next((child.tag for child in case if child.tag != "system-out"), "passed") for case in cases]
    assert kinds == ["failure", "passed", "passed", "failure", "skipped"]
    assert "violated" in (cases[0].find("failure") or cases[0][0]).get("message", "")


def test_ktap_is_read_by_the_kernels_own_parser(kernel_sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "series.ktap").write_text(render_series_ktap(series()))
    for source in kernel_sources.values():
        kunit = source / "tools/testing/kunit/kunit.py"
        argv: list[str | Path] = [sys.executable, "-B", kunit, "parse", tmp_path / "series.ktap"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        last = done.stdout.splitlines()[-1].partition("Ran ")[2]
        counts = {word: int(count) for word, count in re.findall(r"(\w+): (\d+)", last)}
        assert counts == {"passed": 2, "failed": 2, "skipped": 1}
        assert "[ERROR]" not in done.stdout
        assert done.returncode == 1


def test_kcidb_has_each_run_once_and_a_patch_that_does_not_apply() -> None:
    data = json.loads(render_series_kcidb(series(), "somebody"))
    kcidb_io.schema.V5_3.validate(data)
    for kind in ("checkouts", "builds", "tests", "issues", "incidents"):
        ids = [one["id"] for one in data[kind]]
        assert len({*ids}) == len(ids), kind
    assert len(data["builds"]) == 2, "of four commits two have the run of another one"
    assert [one["valid"] for one in data["checkouts"]].count(False) == 2


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [Entry(id="a" * 40, subject="the base", base=True)],
        [Entry(id="a" * 40, subject="the base", base=True), Entry(id="b" * 40, subject="killed")],
    ],
    ids=["nothing", "base alone", "killed"],
)
def test_a_series_that_did_not_come_to_its_end_is_no_pass(entries: list[Entry]) -> None:
    what = series(entries=entries, verdict=None, ended=None)
    assert re.search(r"<title>not finished", render_series_html(what))
    assert render_series_text(what).splitlines()[0].startswith("kvm-kbuild series of")
    assert "not finished" in render_series_text(what).partition("\n\n")[0]
    assert [*valid_junit(render_series_junit(what)).iter("error")]
    assert "not ok" in render_series_ktap(what)
