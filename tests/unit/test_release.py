"""Protects the release policy: what is new counts, what is missing is a MISS, and nothing stays known for ever."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from kbuild.errors import UserError
from kbuild.outcome import Finding, Known, Status, mark_known
from kbuild.profile import Growth, GrowthPart, Profile, Release, Require, find_profile, read_profile
from kbuild.record import Record, Run, Stage, read_record
from kbuild.runs.baseline import baseline_of
from kbuild.runs.release import Policy, read_policy
from kbuild.transcript import StepResult, Transcript

TODAY = datetime.date(2026, 11, 29)
SIZES = {"init": 100, "exit": 10, "text": 1000, "data": 500}
BOTH = Require("qemu-svm", ("vendor-alone", "tdp-off"))


def record(*findings: Finding, cells: dict[str, Status] | None = None, **more: Any) -> Record:
    cells = {"vendor-alone": Status.PASS, "tdp-off": Status.PASS} if cells is None else cells
    given: dict[str, Any] = {
        "id": "20261129-203752-d0bb",
        "task": "gate",
        "command": "inv gate",
        "started": "2026-11-29T20:37:52+00:00",
        "verdict": Status.PASS,
        "kernel": "6.1.192-kbuild",
        "stages": [Stage("inspect", Status.PASS), Stage("load", Status.PASS)],
        "sizes": {"kvm": SIZES},
        "transcripts": [Transcript(host="qemu-svm", order=name, status=status) for name, status in cells.items()],
        "findings": [*findings],
    }
    return Record(**given | more)


def leak(status: Status = Status.FAIL, order: str = "vendor-alone", **more: Any) -> Finding:
    return Finding(id="load:leftover:slab/x:y", status=status, message="m", host="qemu-svm", order=order, **more)


def rule(status: Status) -> Finding:
    return Finding(id="inspect:rule:kvm:r", status=status, message="m", rule="r", module="kvm", answer="proved")


def ids(policy: Policy, now: Record) -> list[tuple[str, Status]]:
    return [(one.id, one.status) for one in policy.judge(now)[0]]


@pytest.mark.parametrize(
    ("before", "now", "counts"),
    [
        ([leak()], leak(), False),
        ([leak()], leak(Status.ERROR), False),
        ([leak(Status.ERROR)], leak(), True),
        ([leak()], leak(order="tdp-off"), True),
        ([leak(known="it was known then")], leak(), True),
        ([leak()], leak(expired="2026-06-30: r"), True),
        ([leak(Status.MISS)], leak(Status.MISS), True),
        ([leak(order="sweep@17")], leak(order="sweep@16"), False),
        ([leak(order="sweep@page-3")], leak(order="sweep@page-2"), False),
        ([leak(order="mmu@kvm.tdp_mmu=1")], leak(order="mmu@kvm.tdp_mmu=0"), True),
        ([], leak(), True),
    ],
    ids=[
        "as before",
        "less grave",
        "graver",
        "in another order",
        "no longer known",
        "expired",
        "MISS",
        "another number of a sweep",
        "another page of a sweep",
        "other parameters",
        "new",
    ],
)
def test_what_the_baseline_has_is_not_new(before: list[Finding], now: Finding, counts: bool) -> None:
    policy = Policy(Release(), record(*before))
    marked = policy.mark(now)
    assert (marked.known is None) == counts
    assert policy.counted([marked])["counting" if counts else "in_baseline"] == [now.id]


@pytest.mark.parametrize("status", [Status.SKIP, Status.MISS, None])
def test_what_is_required_and_was_not_judged_is_a_miss(status: Status | None) -> None:
    now = record(cells={"vendor-alone": Status.PASS} | ({"tdp-off": status} if status else {}))
    policy = Policy(Release(require=(BOTH,)))
    assert ids(policy, now) == [("release:not-judged:qemu-svm:tdp-off", Status.MISS)]
    (one,) = [one for one in policy.judge(now)[1]["required"] if not one["judged"]]
    assert (one["order"], one["status"]) == ("tdp-off", status)


def test_what_was_judged_needs_no_word_here() -> None:
    """A FAIL or an ERROR counts by itself."""
    policy = Policy(Release(require=(BOTH,)))
    assert ids(policy, record(cells={"vendor-alone": Status.FAIL, "tdp-off": Status.ERROR})) == []


def test_an_order_with_several_runs_is_judged_when_all_of_them_are() -> None:
    policy = Policy(Release(require=(Require("qemu-svm", ("mmu",)),)))
    assert ids(policy, record(cells={"mmu@a": Status.PASS, "mmu@b": Status.PASS})) == []
    missing = [("release:not-judged:qemu-svm:mmu", Status.MISS)]
    assert ids(policy, record(cells={"mmu@a": Status.PASS, "mmu@b": Status.SKIP})) == missing
    assert ids(policy, record(cells={})) == missing


def test_what_the_baseline_judged_has_to_be_judged_again() -> None:
    policy = Policy(Release(), record(rule(Status.PASS)))
    now = record(cells={"vendor-alone": Status.PASS})
    assert ids(policy, now) == [
        ("release:not-judged:qemu-svm:tdp-off", Status.MISS),
        ("release:not-asked:kvm:rules", Status.MISS),
    ]
    assert ids(policy, record(rule(Status.PASS))) == []
    other_kernel = record(rules={"asked": 0, "answers": {}, "other_kernels": ["r"]})
    assert ids(policy, other_kernel) == []
    swept = Policy(Release(), record(cells=dict.fromkeys(("sweep@1", "sweep@2", "sweep@page-1"), Status.PASS)))
    assert ids(swept, record(cells={"sweep@1": Status.PASS})) == [], "a sweep that has become shorter"
    assert len(ids(swept, record(cells={}))) == 3
    required = Policy(Release(require=(BOTH,)), record())
    assert len(ids(required, now)) == 1, "what is required and in the baseline is missing once"


@pytest.mark.parametrize(
    ("of", "more", "fails"),
    [("init", 50, False), ("init", 51, True), ("core", 51, True), ("total", 51, True), ("exit", 1000, False)],
)
def test_growth(of: GrowthPart, more: int, fails: bool) -> None:
    part = {"core": "data", "total": "text", "exit": "init"}.get(of, of)
    now = record(sizes={"kvm": SIZES | {part: SIZES[part] + more}})
    policy = Policy(Release(growth=(Growth(of, 50, "kvm", "why"),)), record())
    found, data = policy.judge(now)
    assert [(one.id, one.status) for one in found] == ([(f"release:growth:kvm:{of}", Status.FAIL)] if fails else [])
    assert data["growth"][0]["before"] == sum(
        SIZES[one] for one in {"core": ["text", "data"], "total": SIZES}.get(of, [of])
    )
    assert all("(why)" in one.message for one in found)


def test_growth_of_a_module_that_is_not_there_cannot_be_judged() -> None:
    policy = Policy(Release(growth=(Growth("init", 50, "kvm-arm"),)), record())
    assert ids(policy, record()) == [("release:growth:kvm-arm:init", Status.ERROR)]


def test_a_known_finding_names_its_owner_and_ends_with_its_day() -> None:
    day = datetime.date(2026, 11, 29)
    known = [Known(leak().id, "it is being mended", expires=day, owner="mm@example.org")]
    (marked,), _ = mark_known([leak()], known, "6.1.192", day)
    assert (marked.known, marked.expired) == ("it is being mended [mm@example.org]", None)
    (marked,), unseen = mark_known([leak()], known, "6.1.192", day + datetime.timedelta(days=1))
    assert (marked.known, marked.expired) == (None, "2026-11-29: it is being mended [mm@example.org]")
    assert unseen == []
    assert Policy(Release()).counted([marked])["expired"] == [marked.id]


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(find_profile("release").read_text())
    return path


def test_the_shipped_profile_can_be_read_and_requires_what_it_loads() -> None:
    profile, default = read_profile("release"), read_profile("default")
    release = profile.settings.release
    assert release is not None
    loaded = set(profile.settings.load.orders)
    assert all(set(one.orders) <= loaded and one.host in profile.settings.load.hosts for one in release.require)
    for key in ("local_version", "fragments", "command_line", "hosts", "orders"):
        assert getattr(profile, key) == getattr(default, key), "a gate of it takes what the default profile built"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('owner = "kvm@vger.kernel.org"\nexpires', "expires", r"mine\.toml:\d+: known\[0\]\.finding: has no 'owner'"),
        (
            'host = "qemu-svm"',
            'host = "qemu-arm"',
            r"mine\.toml:\d+: release\.require\[0\]\.host: no file for 'qemu-arm'",
        ),
        (
            'orders = ["vendor-alone", ',
            'orders = ["x", ',
            r"mine\.toml:\d+: release\.require\[0\]\.orders: no file for 'x'",
        ),
        ("owners = true", "owner = true", r"mine\.toml:\d+: release\.owner: no such key"),
    ],
)
def test_what_is_wrong_in_the_policy_is_one_line(policy_file: Path, old: str, new: str, said: str) -> None:
    text = policy_file.read_text()
    assert old in text
    policy_file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        read_profile(str(policy_file))


def with_release(profile: Profile, release: Release | None) -> Profile:
    import msgspec

    return msgspec.structs.replace(profile, settings=msgspec.structs.replace(profile.settings, release=release))


def test_a_baseline_has_nothing_of_the_machine_and_stands_for_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = Run("gate", "/home/dev/kvm-kbuild/scripts/inv gate")
    step = StepResult(number=1, action="load", status=Status.PASS)
    full = record(leak(evidence=("e",), reproduce="/home/dev/…"), rule(Status.PASS), profile="/home/dev/release.toml")
    for key in ("findings", "sizes", "kernel", "profile"):
        setattr(run.record, key, getattr(full, key))
    run.record.tree = {"asked": "debian:6.1", "identity": "i", "source": "/home/dev/.cache/x"}
    run.record.transcripts = [Transcript(host="qemu-svm", order="vendor-alone", status=Status.PASS, steps=[step])]
    with pytest.raises(UserError, match="did not come to its end: it is no baseline"):
        baseline_of("latest")
    run.finish(Status.FAIL)
    text = baseline_of("latest").decode()
    assert "/home" not in text
    assert run.record.tools["host"] not in json.loads(text).get("tools", {}).values()
    file = tmp_path / "baseline.json"
    file.write_text(text)
    assert read_record(str(file)).abridged
    profile = with_release(read_profile("default"), Release(baseline="x.json"))
    for name in (str(file), run.record.id):
        policy = read_policy(profile, name)
        assert policy is not None
        assert policy.mark(leak()).known == f"in the baseline, run {run.record.id} of 6.1.192-kbuild"
    with pytest.raises(UserError, match=r"x\.json"):
        read_policy(profile, None)


def test_policies_that_cannot_be_asked(tmp_path: Path) -> None:
    profile = read_profile("default")
    assert read_policy(profile, None) is None
    growing = with_release(profile, Release(growth=(Growth("init", 1),)))
    with pytest.raises(UserError, match=r"needs release\.baseline or --baseline"):
        read_policy(growing, None)
    (tmp_path / "old.json").write_text(
        json.dumps({"id": "1", "task": "gate", "command": "", "started": "", "verdict": "PASS"})
    )
    with pytest.raises(UserError, match="has no sizes"):
        read_policy(growing, str(tmp_path / "old.json"))
