"""Protects records: valid at every moment, and saying how far a run came that did not come to its end."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.outcome import Finding, Known, Status
from kbuild.paths import write_atomically
from kbuild.profile import read_profile
from kbuild.record import TRANSCRIPTS, Run, read_folder, read_record, runs_home
from kbuild.setting import keep_profile, versions
from kbuild.transcript import StepResult, Transcript
from kbuild.versions import KernelRange


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_everything_comes_back() -> None:
    run = Run("gate", "./scripts/inv gate")
    run.record.findings = [Finding(id="a:b:c:d", status=Status.FAIL, message="m", known="r")]
    run.record.known_not_seen = [Known("e:f:g:h", "r", KernelRange("6.1 -"))]
    with run.stage("build") as stage:
        stage.status = Status.PASS
    run.finish(Status.PASS)
    assert read_record("latest") == run.record
    assert read_record(run.record.id[:-1]) == run.record
    assert read_record(str(run.folder)) == run.record


def test_the_latest_run_is_the_latest_of_its_second_too() -> None:
    for _ in range(20):
        run = Run("gate", "")
        assert read_record("latest").id == run.record.id


def test_a_stage_that_is_at_work_has_no_status() -> None:
    run = Run("gate", "")
    with run.stage("build"):
        record = read_record("latest")
        assert record.verdict is None
        assert [stage.status for stage in record.stages] == [None]


def test_interrupted_and_failed_runs_say_where() -> None:
    run = Run("gate", "")
    with pytest.raises(KeyboardInterrupt), run.stage("load"):
        raise KeyboardInterrupt
    run.interrupt()
    assert read_record("latest").interrupted == "load"
    assert read_record("latest").verdict is None
    run = Run("gate", "")
    error = HarnessError("the disk is full")
    with pytest.raises(HarnessError), run.stage("build"):
        raise error
    run.fail(error)
    record = read_record(run.record.id)
    assert (record.verdict, record.error, record.stages[0].status) == (Status.MISS, str(error), Status.MISS)


def test_a_clock_that_is_set_back_moves_neither_the_end_nor_the_latest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        hours = 5

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return super().now(tz) + datetime.timedelta(hours=cls.hours)

    monkeypatch.setattr("datetime.datetime", Clock)
    first = Run("gate", "")
    Clock.hours = -5
    with first.stage("load"):
        pass
    first.finish(Status.PASS)
    assert first.record.ended is not None
    assert first.record.ended >= first.record.started
    assert first.record.stages[0].seconds >= 0
    assert read_record("latest").id == first.record.id
    second = Run("gate", "")
    assert second.record.id < first.record.id
    assert read_record("latest").id == second.record.id
    shutil.rmtree(second.folder)
    assert read_record("latest").id == first.record.id


def test_what_is_no_record() -> None:
    with pytest.raises(UserError, match="no such run"):
        read_record("2026")
    run = Run("gate", "")
    path = run.folder / "record.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a record"):
        read_record("latest")
    assert json.loads((Run("gate", "").folder / "record.json").read_bytes())["format"] == 1
    path = Run("gate", "").folder / "record.json"
    path.write_bytes(msgspec.json.encode({"format": 99}))
    with pytest.raises(UserError, match="later version"):
        read_record("latest")


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(HarnessError, match="cannot be written"):
        write_atomically(target / "none" / "file", "x")
    assert list(target.iterdir()) == []


def test_what_the_machine_refuses_is_one_line_and_keeps_its_cause() -> None:
    run = Run("gate", "")
    said = r"^stage load: /nowhere/x: No such file or directory$"
    with pytest.raises(HarnessError, match=said) as caught, run.stage("load"):
        Path("/nowhere/x").read_bytes()
    run.fail(caught.value)
    assert read_record("latest").stages[0].reason == str(caught.value)


def test_a_run_whose_folder_is_gone_says_so_and_does_not_make_it_anew() -> None:
    run = Run("gate", "")
    with pytest.raises(HarnessError, match="the emulator went, in place of the record"), run.stage("load"):
        shutil.rmtree(run.folder)
        raise HarnessError("the emulator went, in place of the record")
    with pytest.raises(HarnessError, match=r"^it went; and .*: the run's folder was removed while it was at work$"):
        run.fail(HarnessError("it went"))
    with pytest.raises(HarnessError, match=r"^[^ ]*: the run's folder was removed while it was at work$"):
        run.add(Transcript(host="h", order="o", status=Status.PASS))
    run.interrupt()
    assert not run.folder.exists()


RECORDS = Path(__file__).parent.parent / "data/records"


def test_a_record_of_the_first_version_that_gated_is_read(tmp_path: Path) -> None:
    """Written by that version on a real host, in November 2026; only names of the machine are changed in it."""
    shutil.copy(RECORDS / "first-gate.json", tmp_path / "record.json")
    record = read_folder(tmp_path)
    assert (record.verdict, record.kernel, record.profile_files, record.agent) == ("PASS", "6.1.192-kbuild", {}, None)
    assert [(one.order, one.status) for one in record.transcripts] == [("vendor-alone", "PASS"), ("tdp-off", "PASS")]
    loaded = [one.module for one in record.transcripts[0].steps if one.action == "load"]
    assert loaded == ["irqbypass", "kvm", "kvm_amd"], "what the vendor's module depends on comes first"


def test_what_a_later_version_adds_to_this_format_is_passed_over(tmp_path: Path) -> None:
    run = Run("gate", "")
    run.record.known_not_seen = [Known("e:f:g:h", "r")]
    run.record.findings = [Finding(id="a:b:c:d", status=Status.FAIL, message="m")]
    step = StepResult(number=1, action="load", status=Status.PASS)
    run.record.transcripts = [Transcript(host="h", order="o", status=Status.PASS, steps=[step])]
    run.finish(Status.FAIL)

    def extended(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: extended(one) for key, one in value.items()} | {"of_tomorrow": [1, {"x": None}]}
        return [extended(one) for one in value] if isinstance(value, list) else value

    data = json.loads((run.folder / "record.json").read_bytes())
    for key in ("known_not_seen", "findings", "transcripts"):
        data[key] = extended(data[key])
    (tmp_path / "record.json").write_text(json.dumps(data | {"of_tomorrow": 1}))
    assert read_folder(tmp_path) == run.record


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "2"}', b'{"id": 1}', b"\xff", b'{"id": "\xed\xa0\x80"}'])
def test_what_is_damaged_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*record\.json: not a record[^\n]*$"):
        read_folder(tmp_path)


def test_the_orders_that_came_to_their_end_are_on_record_when_a_run_does_not() -> None:
    run = Run("gate", "")
    finding = Finding(id="load:errno:kvm:o/1-load", status=Status.FAIL, message="m", host="h", order="o")
    first = Transcript(host="h", order="o", status=Status.FAIL, findings=[finding])
    run.add(first)
    run.add(Transcript(host="h", order="p", status=Status.PASS))
    with (run.folder / TRANSCRIPTS).open("ab") as file:
        file.write(b'{"host": "h", "order": "q", "sta')  # cut off by a kill
    record = read_record("latest")
    assert [(one.order, one.status) for one in record.transcripts] == [("o", "FAIL"), ("p", "PASS")]
    assert record.findings == [finding]
    assert record.verdict is None
    run.record.transcripts = [first]
    run.record.findings = [finding]
    run.finish(Status.FAIL)
    assert read_record("latest") == run.record
    assert not (run.folder / TRANSCRIPTS).exists()


KILLED = """
from kbuild.outcome import Finding, Status
from kbuild.profile import read_profile
from kbuild.record import Run
from kbuild.setting import keep_profile
from kbuild.transcript import StepResult, Transcript

profile = read_profile("default")
step = StepResult(number=1, action="load", status=Status.PASS, why="x" * 50000)
while True:
    run = Run("gate", "")
    print(run.record.id, flush=True)
    keep_profile(run, profile)
    for name in ("tree", "build", "load"):
        with run.stage(name):
            run.record.findings.append(Finding(id=f"a:b:c:{name}", status=Status.DONE, message="m" * 5000))
    for order in range(3):
        run.add(Transcript(host="h", order=str(order), status=Status.PASS, steps=[step]))
    run.record.transcripts = [Transcript(host="h", order="all", status=Status.PASS, steps=[step] * 3)]
    run.finish(Status.PASS)
"""


def test_killed_at_twenty_moments_every_record_is_whole() -> None:
    """Several at once, as gates may be; each is killed where it happens to be after some milliseconds."""
    moments = random.Random(7)
    for _ in range(5):
        argv = [sys.executable, "-c", KILLED]
        writers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(4)]
        for one in writers:
            assert one.stdout is not None
            assert one.stdout.readline(), "a run has begun"
        for one in moments.sample(writers, len(writers)):
            time.sleep(moments.random() * 0.02)
            one.send_signal(signal.SIGKILL)
        begun = [line for one in writers for line in one.communicate()[0].split()]
        for name in begun:
            record = read_record(name)
            assert record.id == name
            for kept, digest in record.profile_files.items():
                content = (runs_home() / name / "profile" / kept).read_bytes()
                assert hashlib.sha256(content).hexdigest() == digest
            if record.verdict:
                assert [one.order for one in record.transcripts] == ["all"]
                assert [stage.name for stage in record.stages] == ["tree", "build", "load"]
        assert len({*begun}) == len(begun), "each has a folder of its own"


def test_a_run_keeps_the_profile_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "fragments").mkdir()
    (tmp_path / "fragments/kvm.config").write_text("# of our own\nCONFIG_KVM=m\n")
    (tmp_path / "mine.toml").write_text(
        'title = "t"\n[configure]\nfragments = ["base", "kvm", "./fragments/kvm.config"]\n'
        '[load]\norders = ["vendor-alone"]\nhosts = ["qemu-svm"]\n'
    )
    run = Run("gate", "")
    keep_profile(run, read_profile(str(tmp_path / "mine.toml")))
    run.save()
    kept = read_record("latest").profile_files
    assert set(kept) == {
        "mine.toml",
        "fragments/base.config",
        "fragments/kvm.config",
        "fragments/_kvm.config",
        "orders/vendor-alone.toml",
        "hosts/qemu-svm.toml",
    }
    (tmp_path / "mine.toml").write_text("changed")
    again = read_profile(str(run.folder / "profile/mine.toml"))
    assert again.fragments[1] == run.folder / "profile/fragments/kvm.config"
    assert [path.name for path in again.orders] == ["vendor-alone.toml"]


def test_the_tool_and_what_it_calls_say_their_versions() -> None:
    found = versions()
    assert found["kvm-kbuild"].startswith("0.")
    assert found["git"].startswith("git version")
