"""Protects the judgement of points that the agent does by itself: what it said is told apart, and nothing that is
missing looks like a pass.
"""

from __future__ import annotations

from typing import Any

from kbuild.load.faults.ahead import PARTS, split
from kbuild.load.protocol import Broken, Died, Items, LogRecord, Result, Verb
from kbuild.load.session import End, Reply

NO_MEMORY = 12
DONE = Result(id=7, errno=0, us=9)


def part(number: int, errno: int = 0, **more: Any) -> Result:
    return Result(id=7, part=number, errno=errno, us=1000, **more)


def failed(at: int) -> list[Result]:
    """A point that failed as it should, and left nothing."""
    first = at * len(PARTS)
    return [part(first + 1, NO_MEMORY, left=0), part(first + 3, same=True), part(first + 4), part(first + 5)]


def said(number: int, text: str) -> LogRecord:
    return LogRecord(id=7, seq=number, us=1, level=4, text=text, part=number)


def whole(*parts: Result, answer: Result | Died | None = DONE, **more: Any) -> Reply:
    return Reply(7, answer, parts=[*parts], **more)


def test_each_part_is_the_answer_to_a_command_of_its_own() -> None:
    log = [said(1, "fails"), said(6, "fails, too"), said(9, "the next load")]
    found = split(whole(*failed(0), *failed(1), log=log), 17, 18)
    assert [*found] == [17, 18]
    assert [verb for verb, _ in found[17]] == [Verb.FAULT, Verb.STATE, Verb.LOAD, Verb.UNLOAD]
    assert [[one.text for one in reply.log] for _, reply in found[17]] == [["fails"], [], [], []]
    assert [[one.text for one in reply.log] for _, reply in found[18]] == [["fails, too"], [], ["the next load"], []]
    answers = [reply.answer for _, reply in found[18]]
    assert all(isinstance(answer, Result) and answer.part == 0 for answer in answers)


def test_a_load_that_succeeds_is_undone_first() -> None:
    parts = [part(1, left=0), part(2), part(3, same=True), part(4), part(5)]
    (found,) = split(whole(*parts), 3, 3).values()
    assert [verb for verb, _ in found] == [*PARTS]


def test_the_point_that_leaves_something_is_the_last_and_has_what_it_left() -> None:
    items = [Items(id=7, what="slab", items=("left",))]
    parts = [*failed(0), part(6, NO_MEMORY, left=0), part(8, same=False, hash="0")]
    found = split(whole(*parts, items=items), 1, 32)
    assert [*found] == [1, 2]
    assert [verb for verb, _ in found[2]] == [Verb.FAULT, Verb.STATE], "the rest is asked for when it is judged"
    assert found[2][-1][1].items == items
    assert not any(reply.items for _, reply in found[1])


def test_where_the_guest_ends_the_part_under_way_has_no_result() -> None:
    """An oops in the next load, behind the second failure."""
    parts = [*failed(0), part(6, NO_MEMORY, left=0), part(8, same=True)]
    log = [said(6, "fails"), said(9, "BUG"), said(1, "of the first")]
    for reply in (
        whole(*parts, answer=Died(id=7, signal=9), log=log),
        whole(*parts, answer=None, end=End.PANIC, log=log),
    ):
        found = split(reply, 1, 32)
        assert [verb for verb, _ in found[2]] == [Verb.FAULT, Verb.STATE, Verb.LOAD]
        _, last = found[2][-1]
        assert not isinstance(last.answer, Result)
        assert (last.answer, last.end) == (reply.answer, reply.end)
        assert [one.text for one in last.log] == ["BUG"]
        assert [*found] == [1, 2]


def test_where_the_guest_ends_behind_the_last_point_it_is_told_there() -> None:
    found = split(whole(*failed(0), answer=Died(id=7, signal=11)), 4, 4)
    assert [*found] == [4]
    verb, last = found[4][-1]
    assert verb is Verb.STATE
    assert isinstance(last.answer, Died)


def test_a_point_that_nothing_is_said_of_has_no_result_either() -> None:
    """Its first part was refused, or did not come to its end."""
    for answer in (None, Died(id=7, signal=9), Result(id=7, errno=95, us=1, where="x")):
        ((verb, reply),) = split(whole(answer=answer), 1, 32)[1]
        assert verb is Verb.FAULT
        assert reply.answer == answer


def test_a_result_that_was_lost_on_its_way_is_no_pass() -> None:
    parts = [one for one in (*failed(0), *failed(1)) if one.part != 3]
    found = split(whole(*parts, broken=[Broken(b"x", "cut")]), 1, 2)
    verb, reply = found[1][-1]
    assert verb is Verb.STATE
    assert reply.answer is None
    assert reply.broken
    assert [*found] == [1], "the others are done again"


def test_the_last_result_of_all_may_be_the_damaged_one() -> None:
    """Nothing came behind it: that is no part that was not done."""
    broken = [Broken(b"x", "cut")]
    for parts in ([one for one in failed(0) if one.part != 5], []):
        verb, reply = split(whole(*parts, broken=broken), 1, 1)[1][-1]
        assert verb is (Verb.UNLOAD if parts else Verb.FAULT)
        assert reply.answer is None
        assert reply.broken
    assert split(whole(), 1, 1)[1][-1][1].answer is None


def test_records_that_were_lost_are_missing_in_their_part() -> None:
    found = split(whole(*failed(0), *failed(1), *failed(2), lost=3, lost_in={6}), 1, 3)
    assert [reply.lost for _, reply in found[1]] == [0, 0, 0, 0]
    assert [reply.lost for _, reply in found[2]] == [1, 0, 0, 0]
    assert [*found] == [1, 2], "nothing is read of a log behind a flood: the others are done again"
