"""Protects the record of a bar: one of a later version is not taken for ours, one that was killed is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbuild.barrecord import FILE, FORMAT, BarRecord, Patch, bar_home, begin, read_bar
from kbuild.errors import UserError


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def fresh() -> BarRecord:
    return BarRecord(
        id="", key="k", command="inv bar", source="x", profile="kvm-x86", started="", patches=[Patch("0" * 40, "base")]
    )


def test_one_that_was_killed_is_gone_on_with() -> None:
    bar = begin(fresh())
    assert json.loads((bar.folder / FILE).read_bytes())["format"] == FORMAT
    assert begin(fresh()).record.id == bar.record.id
    assert read_bar(bar.record.id) == bar.record


def test_one_of_a_later_version_is_neither_read_nor_gone_on_with() -> None:
    bar = begin(fresh())
    data = json.loads((bar.folder / FILE).read_bytes())
    (bar.folder / FILE).write_text(json.dumps({**data, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="written by a later version"):
        read_bar(bar.record.id)
    assert begin(fresh()).record.id != bar.record.id


def test_what_is_no_record_is_refused_in_one_line() -> None:
    folder = bar_home() / "20260101-000000-0000-bar"
    with pytest.raises(UserError, match="No such file"):
        read_bar(folder.name)
    folder.mkdir(parents=True)
    for text in ("", "[]", '{"format": 1}', "\xff"):
        (folder / FILE).write_text(text, "latin-1")
        with pytest.raises(UserError, match="no record of this tool"):
            read_bar(folder.name)
