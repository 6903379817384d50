"""Protects the meaning of a verdict: what counts, what is known, and which exit status says so."""

from __future__ import annotations

import datetime

import pytest

from kbuild.outcome import Finding, Known, Status, exit_status, finding_id, mark_known, verdict, worst
from kbuild.versions import KernelRange

TODAY = datetime.date(2026, 11, 23)


def finding(name: str, status: Status = Status.FAIL) -> Finding:
    return Finding(id=name, status=status, message="something")


def test_worst_is_the_first_of_kcidbs_words() -> None:
    assert worst([Status.PASS, Status.MISS, Status.SKIP]) == Status.MISS
    assert worst([Status.ERROR, Status.FAIL]) == Status.FAIL
    assert worst([Status.SKIP, Status.PASS]) == Status.PASS


def test_nothing_judged_is_no_pass() -> None:
    assert worst([]) == Status.SKIP
    assert exit_status(Status.SKIP) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [("FAIL", 10), ("ERROR", 3), ("MISS", 3), ("PASS", 0), ("DONE", 0), ("SKIP", 3)],
)
def test_exit_status(status: str, code: int) -> None:
    assert exit_status(Status(status)) == code


def test_known_finding_is_shown_and_not_counted() -> None:
    known = Known("load:leftover:debugfs/kvm:fault=*", "kvm_init() does not undo kvm_init_debug()")
    found, missing = mark_known([finding("load:leftover:debugfs/kvm:fault=misc_register")], [known], "6.1.192", TODAY)
    assert [f.known for f in found] == [known.reason]
    assert verdict(found, [Status.PASS]) == Status.PASS
    assert not missing


def test_what_is_declared_without_a_reason_does_not_count_either() -> None:
    (found,), _ = mark_known([finding("a:b:c:d")], [Known("a:b:c:d", "")], "6.1", TODAY)
    assert found.known == ""
    assert not found.counts
    assert verdict([found], [Status.PASS]) == Status.PASS
    assert finding("a:b:c:d").counts
    assert not finding("a:b:c:d", Status.DONE).counts


def test_glob_does_not_cross_a_colon() -> None:
    known = Known("load:*:x", "reason")
    found, missing = mark_known([finding("load:a:b:x")], [known], "6.1", TODAY)
    assert found[0].known is None
    assert missing == [known]


def test_other_characters_of_a_glob_mean_themselves() -> None:
    assert not Known("load:[a]:b:c", "r").matches(finding("load:a:b:c"))
    assert Known("load:[a]:b:c", "r").matches(finding("load:[a]:b:c"))


def test_known_for_other_kernels_and_expired_ones_count() -> None:
    other = Known("a:b:c:d", "r", KernelRange("6.12 -"))
    expired = Known("a:b:c:d", "r", expires=TODAY - datetime.timedelta(days=1))
    found, missing = mark_known([finding("a:b:c:d")], [other, expired], "6.1.192", TODAY)
    assert verdict(found, []) == Status.FAIL
    assert not missing, "what does not hold for this kernel was not looked for"
    assert mark_known([finding("a:b:c:d")], [Known("a:b:c:d", "r", expires=TODAY)], "6.1", TODAY)[0][0].known


def test_a_rule_that_is_kept_after_all_is_no_known_finding() -> None:
    known = Known("inspect:rule:kvm-intel:x", "r")
    for status, marked in ((Status.FAIL, "r"), (Status.ERROR, "r"), (Status.PASS, None), (Status.SKIP, None)):
        found, missing = mark_known([finding("inspect:rule:kvm-intel:x", status)], [known], "6.1", TODAY)
        assert found[0].known == marked
        assert bool(missing) == (marked is None)


def test_id_parts_keep_their_borders() -> None:
    assert finding_id("load", "crash", "kvm_amd", "BUG: at a:1").count(":") == 3
