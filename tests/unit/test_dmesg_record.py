"""Protects the reading of console text and /dev/kmsg: prefixes, rubbish, bounds. The input is a real boot of 6.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.dmesg import record
from kbuild.dmesg.record import ConsoleParser, Record, parse_console, parse_console_line, parse_kmsg

LOGS = Path(__file__).parent.parent / "data" / "dmesg"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b"<3>[    0.685371][   T20] kvm: already loaded vendor module 'kvm_amd'\r",
            Record(None, 685371, 3, "kvm: already loaded vendor module 'kvm_amd'", "T20"),
        ),
        (b"[   12.000001][    C3] watchdog", Record(None, 12_000_001, None, "watchdog", "C3")),
        (b"[    1.234567] no caller", Record(None, 1_234_567, None, "no caller")),
        (b"[    1.234567][ T1/init] later kernels", Record(None, 1_234_567, None, "later kernels", "T1")),
        (b"<6>[    0.532968][   T15]  <TASK>", Record(None, 532968, 6, " <TASK>", "T15")),
        (b"SeaBIOS (version 1.16)", Record(None, None, None, "SeaBIOS (version 1.16)")),
        (b"<12>[    0.5][T1] cut", Record(None, None, 4, "[    0.5][T1] cut", facility=1)),
        (b"\x1b[2J\x00\xffBochs", Record(None, None, None, r"\x1b[2J\x00\xffBochs")),
    ],
)
def test_console_line(line: bytes, expected: Record) -> None:
    assert parse_console_line(line) == expected


def test_empty_lines_are_no_records_unless_the_kernel_printed_one() -> None:
    assert parse_console_line(b"\r") is None
    assert parse_console_line(b"<3>[    0.607902][   T16] ") == Record(None, 607902, 3, "", "T16")


def test_steps_come_from_the_marks() -> None:
    console = parse_console((LOGS / "kvm-amd.log").read_bytes())
    nested = [r.step for r in console.records if r.text == "SVM: kvm: Nested Paging enabled"]
    assert nested == [3, 5]
    assert console.records[0].text.startswith("Linux version 6.1")
    assert console.records[0].step is None
    assert all(r.facility == 1 for r in console.records if r.text.startswith("kvm-kbuild: step "))
    assert console.dropped == 0


def test_marks_are_no_kernel_text_even_where_no_priority_is_shown() -> None:
    console = parse_console((LOGS / "null-without-levels.log").read_bytes())
    assert {r.facility for r in console.records if r.text.startswith("kvm-kbuild: step ")} == {1}
    assert {r.level for r in console.records} == {None}


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_pieces_of_any_size_give_the_same(size: int) -> None:
    data = (LOGS / "bug.log").read_bytes()
    whole = parse_console(data)
    assert parse_console(data[at : at + size] for at in range(0, len(data), size)) == whole
    assert len(whole.records) == data.count(b"\n") + (not data.endswith(b"\n"))


def test_a_line_without_end_is_cut() -> None:
    parser = ConsoleParser()
    for _ in range(100):
        parser.feed(b"x" * 100_000)
    parser.feed(b"\nnext\n")
    first, second = parser.finish().records
    assert 0 < len(first.text) <= record.MAX_TEXT
    assert second.text == "next"


def test_of_an_endless_log_the_beginning_and_the_end_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FIRST_RECORDS", 10)
    monkeypatch.setattr(record, "LAST_RECORDS", 5)
    console = parse_console(b"".join(b"line %d\n" % number for number in range(100)))
    assert [r.text for r in console.records] == [f"line {n}" for n in (*range(10), *range(95, 100))]
    assert (console.dropped, console.dropped_at) == (85, 10)


def test_long_lines_count_as_much_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FIRST_CHARACTERS", 100)
    monkeypatch.setattr(record, "LAST_CHARACTERS", 100)
    console = parse_console(b"".join(b"%050d\n" % number for number in range(10)))
    assert [int(r.text) for r in console.records] == [0, 1, 8, 9]
    assert console.dropped == 6


def test_kmsg_record() -> None:
    line = "3,716,685371,-,caller=T20;do_init_module: one\\x0atwo\n SUBSYSTEM=x\n"
    assert parse_kmsg(line, step=4) == Record(716, 685371, 3, "do_init_module: one\ntwo", "T20", 4)
    assert parse_kmsg("12,717,685400,-;kvm-kbuild: step 1 begin") == Record(
        717, 685400, 4, "kvm-kbuild: step 1 begin", facility=1
    )


@pytest.mark.parametrize("line", ["", "3,716,685371,-", "x,1,1,-;text", "3,716;text", ";"])
def test_what_is_no_kmsg_record(line: str) -> None:
    assert parse_kmsg(line) is None
