"""Protects which commits and packages are held against which: each commit against its parent, each package against
those of its kind, and a machine that failed while patches were applied is not the patch.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.series.apply import apply
from kbuild.series.ask import kind_of
from kbuild.series.commits import commits_of
from kbuild.series.mail import Mail, Mailbox
from tests.unit.conftest import git as git_in

Git = Callable[..., str]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "linux"
    path.mkdir()
    return path


@pytest.fixture
def git(tree: Path) -> Git:
    def call(*arguments: str) -> str:
        return git_in(tree, *arguments).strip()

    call("init", "--quiet", "--initial-branch=main")
    call("commit", "--quiet", "--allow-empty", "--message=base")
    return call


def add(git: Git, name: str) -> str:
    git("commit", "--quiet", "--allow-empty", f"--message={name}")
    return git("rev-parse", "HEAD")


def test_of_a_merge_it_is_asked_what_it_brings(tree: Path, git: Git) -> None:
    start = git("rev-parse", "HEAD")
    git("switch", "--quiet", "--create=side")
    add(git, "side")
    git("switch", "--quiet", "main")
    first = add(git, "first")
    git("merge", "--quiet", "--no-ff", "--message=merge", "side")
    base, commits = commits_of(tree, f"{start}..main")
    assert (base.id, [one.subject for one in commits]) == (start, ["first", "merge"])
    assert commits[0].id == first


def test_a_range_that_does_not_stand_on_its_base_is_refused(tree: Path, git: Git) -> None:
    start = git("rev-parse", "HEAD")
    git("switch", "--quiet", "--create=mine")
    add(git, "mine")
    git("switch", "--quiet", "main")
    add(git, "theirs")
    with pytest.raises(UserError, match=rf"\(mine\), does not stand on main, .*: write {start[:12]}\.\.mine$"):
        commits_of(tree, "main..mine")
    assert [one.subject for one in commits_of(tree, f"{start[:12]}..mine")[1]] == ["mine"]


def test_a_range_without_a_common_commit_is_refused(tree: Path, git: Git) -> None:
    git("switch", "--quiet", "--orphan", "other")
    add(git, "other")
    with pytest.raises(UserError, match=r"does not stand on main.*: rebase"):
        commits_of(tree, "main..other")


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        ("linux-image-6.12.111+deb12-amd64=6.12.111-1~deb12u1", "linux-image-amd64"),
        ("linux-image-6.12.111+deb12-rt-amd64=6.12.111-1~deb12u1", "linux-image-rt-amd64"),
        ("linux-image-6.1.0-56-amd64", "linux-image-amd64"),
        ("linux-image-6.1.0-0.deb11.13-cloud-amd64", "linux-image-cloud-amd64"),
    ],
)
def test_a_package_is_of_the_kind_that_its_name_says(package: str, kind: str) -> None:
    assert kind_of(package) == kind


def test_a_machine_that_failed_is_not_the_patch(
    tree: Path, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git is a real one, but for `am`: no disk is full on demand."""
    raw = b"From: A <a@example.org>\nSubject: [PATCH] x\n\nno patch\n"
    mailbox = Mailbox((Mail(1, "x", raw),), None)
    add(git, "first")
    assert apply(tree, mailbox, None).failed is mailbox.mails[0]
    real = subprocess.run(["which", "git"], check=True, capture_output=True, text=True).stdout.strip()
    folder = tmp_path / "bin"
    folder.mkdir()
    for said in ("echo 'fatal: sha1 file: write error: No space left on device'; exit 128", "kill -KILL $$"):
        (folder / "git").write_text(f'#!/bin/sh\ncase " $* " in *" am --quiet"*) {said};; *) exec {real} "$@";; esac\n')
        (folder / "git").chmod(0o755)
        with monkeypatch.context() as context:
            context.setenv("PATH", str(folder), prepend=":")
            with pytest.raises(HarnessError, match=r"No space left on device|ended with status 137"):
                apply(tree, mailbox, None)
