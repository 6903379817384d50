"""Protects records: valid at every moment, and saying how far a run came that did not come to its end."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import msgspec
import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.outcome import Finding, Known, Status
from kbuild.paths import write_atomically
from kbuild.record import Run, read_record
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
    run.interrupt()
    assert not run.folder.exists()
