"""Protects what is on the disk: a clean-up takes what it is told to, never what is in use, no evidence by itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kbuild import log
from kbuild.build.artifacts import artifact, artifacts_in_use, store
from kbuild.build.kernel import build, building, find_built, prepare_objects
from kbuild.build.request import BuildRequest
from kbuild.build.toolchain import find_toolchain
from kbuild.cache.clean import remove, show
from kbuild.cache.inventory import Kind, inventory
from kbuild.cache.limit import GIGABYTE, cache_limit, trim
from kbuild.cache.removal import Selection, read_age, read_kind
from kbuild.configure.request import Request
from kbuild.configure.tree import open_tree
from kbuild.errors import HarnessError, UserError
from kbuild.outcome import Status
from kbuild.paths import cache_home, locked, make_folder
from kbuild.record import Run, read_record

DAY = 86400
MEGABYTE = 1 << 20

# The smallest tree that builds what a kernel's does; LOCALVERSION makes its builds differ.
MAKEFILE = f"""
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 7
EXTRAVERSION =
bzImage modules:
	mkdir -p $(O)/arch/x86/boot $(O)/include/config
	cd $(O) && echo $(LOCALVERSION) | tee System.map Module.symvers vmlinux kvm.ko >include/config/kernel.release
	cd $(O) && yes x$(LOCALVERSION) | head -c {MEGABYTE} >arch/x86/boot/bzImage
	cd $(O) && echo kvm.o >modules.order
"""


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "linux"
    (folder / "arch/x86/kvm").mkdir(parents=True)
    (folder / "arch/x86/kvm/x86.c").write_text("int x;\n")
    (folder / "Makefile").write_text(MAKEFILE)
    return folder


def judge(tree: Path, version: str, *, keep: bool = True) -> Run:
    """Build a tree and keep its artifacts in a run, with the library's own steps."""
    run = Run("build", "")
    with open_tree(str(tree)) as opened, artifacts_in_use():
        wanted = BuildRequest(opened, Request(), find_toolchain(), version, ())
        result = find_built(wanted)
        if result is None:
            prepare_objects(wanted)
            (wanted.objects / ".config").write_text("")
            result = build(wanted, run.folder)
        assert result.built
        for name, digest in result.built.files.items() if keep else ():
            run.keep(artifact(digest), f"artifacts/{name}")
    run.finish(Status.PASS)
    return run


def age(kind: Kind, days: float, about: str = "") -> None:
    """Make entries look as if they had last been used so long ago."""
    then = time.time() - days * DAY
    for entry in inventory():
        if entry.kind is kind and about in entry.about:
            for path in entry.stamps:
                if path.exists():
                    os.utime(path, (then, then))


def there() -> dict[Kind, list[str]]:
    """What there is, builds by their release."""
    entries = inventory()
    return {
        kind: sorted(entry.about or entry.name for entry in entries if entry.kind is kind)
        for kind in {entry.kind for entry in entries}
    }


@contextmanager
def another_process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Python that has come as far as `print()` and waits there until it is killed."""
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def holding(tree: Path) -> str:
    return f"from kbuild.configure.tree import open_tree\nwith open_tree({str(tree)!r}): print(flush=True), input()"


def test_a_build_that_is_used_is_not_forgotten_for_newer_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbuild.build.kernel.MAX_EARLIER", 2)
    source = tree / "arch/x86/kvm/x86.c"

    def made(content: str) -> bool:
        source.write_text(content)
        return (judge(tree, "").folder / "build.log").exists()

    assert [made(content) for content in ("first", "second", "first", "third", "first", "fourth", "first")] == [
        True, True, False, True, False, True, False,
    ]  # fmt: skip
    assert made("second"), "it was not used"


def test_a_package_s_source_is_read_while_it_is_built_and_an_object_folder_is_one_run_s(
    monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    slot = make_folder(cache_home() / "trees/linux-source-6.1_6.1.1-1")
    tree.rename(slot / "src")
    monkeypatch.setattr("kbuild.configure.debian.fetch_source", lambda *_, **__: (slot / "src", "6.1.1-1"))
    with open_tree("debian:6.1") as one, open_tree("debian:6.1") as other:
        request = BuildRequest(one, Request(), find_toolchain(), "", ())
        with building(request):
            assert one == other
            lock = request.objects.with_name(f".{request.objects.name}.lock")
            with locked(lock, blocking=False) as mine, locked(slot / "lock", blocking=False) as unread:
                assert (mine, unread) == (False, False)


def test_a_file_with_several_names_counts_once(tree: Path) -> None:
    judge(tree, "-a")
    before = show((), 0)
    judge(tree, "-a")
    after = show((), 0)
    assert after["cache_bytes"] == before["cache_bytes"]
    assert MEGABYTE <= before["runs_bytes"] < after["runs_bytes"] < before["runs_bytes"] + MEGABYTE
    assert sum(one["bytes"] for one in after["entries"]) == after["cache_bytes"] + after["runs_bytes"]
    assert {one["kind"] for one in after["entries"]} == {"trees", "builds", "artifacts", "runs"}
    assert not any(one["in_use"] for one in after["entries"] if one["kind"] != "runs")


def test_by_age_a_build_goes_and_its_tree_stays(tree: Path) -> None:
    judge(tree, "-a")
    judge(tree, "-b")
    age(Kind.BUILDS, 20, "-a")
    done = remove(Selection(older_than=read_age("14d")), dry_run=True)
    assert [one["kind"] for one in done["removed"]] == ["builds"]
    assert there()[Kind.BUILDS] == ["-a", "-b"]
    assert remove(Selection(older_than=read_age("14d")))["freed_bytes"] == done["freed_bytes"] >= MEGABYTE
    assert there()[Kind.BUILDS] == ["-b"]
    assert len(there()[Kind.TREES]) == 1


def test_use_makes_young(tree: Path) -> None:
    judge(tree, "-a")
    for kind in Kind:
        age(kind, 20)
    judge(tree, "-a")
    assert not remove(Selection(older_than=14 * DAY))["removed"]


def test_by_name_and_kind(tree: Path) -> None:
    judge(tree, "-a")
    assert not remove(Selection(names=("nothing*",)))["removed"]
    done = remove(Selection(kinds=(Kind.BUILDS,), names=("nothing*", "linux-*")))
    assert [one["kind"] for one in done["removed"]] == ["builds"]
    # A build belongs to its tree.
    judge(tree, "-a")
    done = remove(Selection(names=("linux-*-work",), kinds=(Kind.TREES,)))
    assert [one["kind"] for one in done["removed"]] == ["builds", "trees"]


def test_runs_go_only_when_they_are_asked_for(tree: Path) -> None:
    run = judge(tree, "-a")
    remove(Selection())
    assert not there().keys() - {Kind.RUNS}
    assert read_record(run.record.id).verdict == "PASS"
    assert (run.folder / "artifacts/bzImage").stat().st_size == MEGABYTE
    name, folder = run.record.id, run.folder
    del run  # it is over when nobody has it any more
    done = remove(Selection(kinds=(Kind.RUNS,), names=(name,)))
    assert done["freed_bytes"] > MEGABYTE
    assert not folder.exists()


def test_artifacts_go_with_the_last_that_has_them(tree: Path) -> None:
    judge(tree, "-a", keep=False)
    judge(tree, "-b")
    kept = len(there()[Kind.ARTIFACTS])
    remove(Selection(kinds=(Kind.BUILDS,)))
    assert 0 < len(there()[Kind.ARTIFACTS]) < kept
    assert all(path.stat().st_nlink > 1 for path in store().glob("??/*"))


def test_a_tree_in_use_stays_with_its_builds(tree: Path) -> None:
    judge(tree, "-a")
    with another_process(holding(tree)):
        done = remove(Selection())
        assert {(one["kind"], one["reason"]) for one in done["skipped"]} == {("builds", "in use"), ("trees", "in use")}
        assert there()[Kind.BUILDS] == ["-a"]
        assert all(one["in_use"] for one in show((Kind.TREES,), 0)["entries"])
    done = remove(Selection())
    assert not done["skipped"]
    assert not there().keys() - {Kind.RUNS}


def test_artifacts_in_use_stay(tree: Path) -> None:
    judge(tree, "-a")
    held = "from kbuild.build.artifacts import artifacts_in_use\nwith artifacts_in_use(): print(flush=True), input()"
    with another_process(held):
        done = remove(Selection(kinds=(Kind.ARTIFACTS,)))
    assert not done["removed"]
    assert {one["reason"] for one in done["skipped"]} == {"in use"}


def test_a_run_that_goes_on_stays_and_one_that_was_killed_goes() -> None:
    with another_process("from kbuild.record import Run\nrun = Run('gate', ''); print(flush=True), input()") as process:
        (entry,) = inventory()
        assert remove(Selection(kinds=(Kind.RUNS,)))["skipped"]
        assert (entry.path / "record.json").is_file()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert remove(Selection(kinds=(Kind.RUNS,)))["removed"]
    assert not entry.path.exists()


def test_who_waits_for_a_lock_that_is_removed_gets_a_new_one(tmp_path: Path) -> None:
    """What a gate that starts while its tree is removed does."""
    path = tmp_path / "slot/lock"
    waits, has, end = threading.Event(), threading.Event(), threading.Event()

    def gate() -> None:
        waits.set()
        with locked(path):
            has.set()
            end.wait()

    thread = threading.Thread(target=gate)
    with locked(path):
        thread.start()
        waits.wait()
        path.parent.rename(tmp_path / "aside")
    has.wait()
    with locked(path, blocking=False) as mine:
        assert not mine
    end.set()
    thread.join()


def test_a_folder_that_goes_while_it_is_made_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between `mkdir()`, to which it is there, and a look at what is there."""
    path = tmp_path / "slot"
    path.mkdir()
    is_dir = Path.is_dir

    def goes(self: Path) -> bool:
        monkeypatch.setattr(Path, "is_dir", is_dir)
        path.rename(tmp_path / "aside")
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", goes)
    assert make_folder(path).is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match=r"file: cannot be made: File exists"):
        make_folder(tmp_path / "file")


def test_a_removal_that_was_killed_leaves_nothing_half_there(tree: Path) -> None:
    judge(tree, "-a")
    killed = "from kbuild.cache import removal\nimport os\nremoval.delete = lambda path: os.kill(os.getpid(), 9)\n"
    code = f"{killed}removal.Removal().remove(removal.select(removal.Selection(kinds=(removal.Kind.TREES,))))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(there()[Kind.LEFTOVERS]) == 1
    assert Kind.BUILDS not in there()
    judge(tree, "-a")
    remove(Selection(kinds=(Kind.LEFTOVERS,)))
    assert Kind.LEFTOVERS not in there()
    assert there()[Kind.BUILDS] == ["-a"]


def test_over_the_limit_the_oldest_goes_and_what_was_just_used_stays(tree: Path) -> None:
    judge(tree, "-a")
    judge(tree, "-b")
    age(Kind.BUILDS, 1, "-a")
    started = time.time()
    judge(tree, "-c")
    said = io.StringIO()
    log.configure(stream=said)
    limit = show((), 0)["cache_bytes"] - MEGABYTE // 2
    trim(limit, spare_since=started)
    assert there()[Kind.BUILDS] == ["-b", "-c"]
    (line,) = said.getvalue().splitlines()
    assert "builds linux-" in line
    trim(limit, spare_since=started)
    assert there()[Kind.BUILDS] == ["-b", "-c"], "it is below the limit now"
    trim(1, spare_since=started)
    assert there()[Kind.BUILDS] == ["-c"]
    assert len(there()[Kind.TREES]) == 1
    assert len(there()[Kind.RUNS]) == 3
    assert "the rest is in use" in said.getvalue()


def test_what_runs_keep_does_not_push_builds_out(tree: Path) -> None:
    judge(tree, "-a")
    limit = show((), 0)["cache_bytes"]
    for version in ("-b", "-c"):
        judge(tree, version)
        remove(Selection(kinds=(Kind.BUILDS,), names=("*",))) if version == "-b" else None
    # Three runs keep a megabyte each that nobody else has; the cache has the last build.
    trim(limit + MEGABYTE // 2, spare_since=time.time())
    assert there()[Kind.BUILDS] == ["-c"]


@pytest.mark.parametrize("text", ["14", "2w", "-1d", "d", ""])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(UserError, match="such as 14d or 12h"):
        read_age(text)


def test_what_is_no_kind_and_no_limit() -> None:
    with pytest.raises(UserError, match="there are trees, builds"):
        read_kind("tree")
    for value in ("much", "0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match=r"kbuild\.cache_gb"):
            cache_limit(value)
    assert cache_limit("0.5") == GIGABYTE // 2
    assert 0 < cache_limit(None) <= 40 * GIGABYTE
