"""Protects `--patch`: what is built is the tree as patched by hand; neither tree nor cached source changes."""

from __future__ import annotations

import email.message
import email.policy
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.configure import overlay
from kbuild.configure.tree import open_tree
from kbuild.errors import UserError
from tests.unit.conftest import git, snapshot

KVM = "arch/x86/kvm"


@pytest.fixture(autouse=True)
def in_private_cache(private_cache: None) -> None:
    """No test here may write to the cache that everybody uses."""


@pytest.fixture
def linux(checkout: Path) -> Path:
    """A checkout with some files to patch."""
    (checkout / KVM / "svm.c").write_text("".join(f"int line{number};\n" for number in range(40)))
    (checkout / KVM / "old.c").write_text("int old;\n" * 9)
    (checkout / KVM / "gone.c").write_text("int gone;\n")
    (checkout / "scripts").mkdir()
    (checkout / "scripts/link").symlink_to("../Makefile")
    (checkout / "scripts/run").write_text("#!/bin/sh\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "two")
    return checkout


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def big_change(tree: Path) -> None:
    """Everything that a patch can do to a file."""
    edit(tree / KVM / "svm.c", "line7;", "line7 = 7; /* Jürgen's = */")
    edit(tree / KVM / "svm.c", "line30;", "line30 = 30;")
    (tree / KVM / "old.c").rename(tree / KVM / "new.c")
    (tree / KVM / "gone.c").unlink()
    (tree / "virt/kvm").mkdir(parents=True)
    (tree / "virt/kvm/more.c").write_text("int more;\n")
    (tree / "scripts/run").chmod(0o755)
    (tree / "scripts/link").unlink()
    (tree / "scripts/link").symlink_to("run")


def diff_of(tree: Path, change: Callable[[Path], None], scratch: Path) -> str:
    """The change as a diff; the tree stays as it is."""
    copy = scratch / "edited"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy, symlinks=True)
    change(copy)
    git(copy, "add", "-A")
    return git(copy, "diff", "--cached", "-M", "HEAD")


def contents(folder: Path) -> dict[str, tuple[bytes, bool]]:
    """Files and links with what they hold, and whether they can be run."""
    return {
        str(path.relative_to(folder)): (
            os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes(),
            bool(path.lstat().st_mode & 0o111),
        )
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and ".git" not in path.relative_to(folder).parts
    }


def refusal(tree: str, rev: str | None = None, *, patches: list[Path]) -> str:
    with pytest.raises(UserError) as caught, open_tree(tree, rev, patches=[str(path) for path in patches]):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "checkout", "rev"])
def test_a_patched_tree_is_as_patched_by_hand(linux: Path, tmp_path: Path, kind: str) -> None:
    patch = tmp_path / "big.patch"
    patch.write_text(diff_of(linux, big_change, tmp_path))
    by_hand = tmp_path / "by-hand"
    shutil.copytree(linux, by_hand, symlinks=True)
    git(by_hand, "apply", str(patch))
    if kind == "folder":
        shutil.rmtree(linux / ".git")
    rev = "HEAD" if kind == "rev" else None
    with open_tree(str(linux), rev) as plain:
        before = snapshot(linux), snapshot(plain.source, without=".git")
    # git remembers a file's change time in seconds; a link changes it, and is not to make git write the file again.
    while time.time() < (plain.source / "Makefile").stat().st_ctime_ns // 10**9 + 1:
        time.sleep(0.01)
    with open_tree(str(linux), rev, patches=[str(patch)]) as tree:
        assert contents(tree.source) == contents(by_hand)
        assert tree.slot != plain.slot
        assert tree.identity.startswith(plain.identity)
    with open_tree(str(linux), rev) as again:
        assert again.identity == plain.identity
        assert (snapshot(linux), snapshot(again.source, without=".git")) == before


def test_another_patch_writes_only_what_differs(linux: Path, tmp_path: Path) -> None:
    """What is put back has to be newer than the objects made of it meanwhile; all else keeps its time."""
    one, two = tmp_path / "one.patch", tmp_path / "two.patch"
    one.write_text(diff_of(linux, big_change, tmp_path))

    def smaller(tree: Path) -> None:
        big_change(tree)
        edit(tree / KVM / "svm.c", "line7 =", "line7  =")
        edit(tree / "virt/kvm/more.c", "more", "even_more")
        (tree / "scripts/run").chmod(0o644)
        (tree / KVM / "gone.c").write_text("int gone;\n")

    two.write_text(diff_of(linux, smaller, tmp_path))
    times = []
    for patches in ([one], [two], [one], [one]):
        with open_tree(str(linux), patches=[str(path) for path in patches]) as tree:
            files = [path for path in tree.source.rglob("*") if path.is_file()]
            times.append({str(path.relative_to(tree.source)): path.stat().st_mtime_ns for path in files})
    differing = {f"{KVM}/svm.c", f"{KVM}/gone.c", "virt/kvm/more.c", "scripts/run", "scripts/link"}
    for before, after in itertools.pairwise(times[:3]):
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert changed == differing
        assert all(after[path] > before[path] for path in changed if path in before and path in after)
    assert times[3] == times[2]


def test_the_tree_may_change_under_the_patch(linux: Path, tmp_path: Path) -> None:
    patch = tmp_path / "big.patch"
    patch.write_text(diff_of(linux, big_change, tmp_path))
    with open_tree(str(linux), patches=[str(patch)]) as tree:
        before = tree.identity, contents(tree.source)
    edit(linux / KVM / "svm.c", "line20;", "line20 = 20;")
    edit(linux / KVM / "x86.c", "x", "y")
    (linux / ".gitignore").unlink()
    (linux / KVM / "fresh.c").write_text("int fresh;\n")
    git(linux, "add", "-A")
    git(linux, "commit", "-qm", "three")
    git(tmp_path / "edited", "pull", "-q", "--rebase", "--autostash", str(linux))
    with open_tree(str(linux), patches=[str(patch)]) as tree:
        assert contents(tree.source) == contents(tmp_path / "edited")
    with open_tree(str(linux), "HEAD~1", patches=[str(patch)]) as tree:
        assert contents(tree.source) == before[1]
    git(linux, "reset", "-q", "--hard", "HEAD~1")
    with open_tree(str(linux), patches=[str(patch)]) as tree:
        assert (tree.identity, contents(tree.source)) == before


def mail(diff: str, encoding: str, attached: bool = False) -> bytes:
    message = email.message.EmailMessage(policy=email.policy.SMTP if attached else email.policy.default)
    message["From"], message["Subject"] = "Jürgen <j@example.org>", "[PATCH] KVM: SVM: größer"
    text = f"Why.\n---\n {KVM}/svm.c | 2 +-\n\n{diff}-- \n2.39.5\n"
    if attached:
        message.set_content("See there.\n")
        message.add_attachment(text, subtype="x-patch", filename="0001.patch", cte=encoding)
    else:
        message.set_content(text, cte=encoding)
    return message.as_bytes()


@pytest.mark.parametrize(
    "form",
    [
        lambda diff: mail(diff, "8bit"),
        lambda diff: mail(diff, "quoted-printable"),
        lambda diff: mail(diff, "base64"),
        lambda diff: mail(diff, "quoted-printable", attached=True),
        lambda diff: b"From 0123 Mon Sep 17 00:00:00 2001\n" + mail(diff, "quoted-printable"),
        lambda diff: diff.replace("\n", "\r\n").encode(),
    ],
    ids=["8bit", "quoted-printable", "base64", "attachment", "mbox", "carriage returns"],
)
def test_a_mail_is_what_it_carries(linux: Path, tmp_path: Path, form: Callable[[str], bytes]) -> None:
    diff = diff_of(linux, big_change, tmp_path)
    plain, mailed = tmp_path / "plain.diff", tmp_path / "mailed.eml"
    plain.write_text(diff)
    mailed.write_bytes(form(diff))
    identities = []
    for patch in (plain, mailed):
        with open_tree(str(linux), patches=[str(patch)]) as tree:
            identities.append(tree.identity)
    assert identities[0] == identities[1]


def test_patches_go_on_top_of_each_other_and_format_patch_is_understood(linux: Path, tmp_path: Path) -> None:
    start = git(linux, "rev-parse", "HEAD").strip()
    for number in ("one", "two"):
        edit(linux / KVM / "x86.c", "int", f"int {number},")
        git(linux, "commit", "-qam", number)
    series = [tmp_path / name for name in git(linux, "format-patch", "-o", str(tmp_path), start).split()]
    with open_tree(str(linux), start, patches=[str(path) for path in series]) as tree:
        assert (tree.source / KVM / "x86.c").read_bytes() == (linux / KVM / "x86.c").read_bytes()
        assert tree.commit == start
    said = refusal(str(linux), start, patches=series[::-1])
    assert said.startswith(f"{series[1]}:")
    assert f"does not apply to {KVM}/x86.c" in said
    whole = tmp_path / "series.mbox"
    whole.write_bytes(b"".join(path.read_bytes() for path in series))
    assert "holds 2 messages: give each patch with its own --patch" in refusal(str(linux), patches=[whole])


def test_a_patch_that_does_not_apply_is_named_with_its_line(linux: Path, tmp_path: Path) -> None:
    diff = diff_of(linux, big_change, tmp_path).replace(" int line31;", " int line13;")
    hunk = next(line for line in diff.splitlines() if line.startswith("@@ -28,"))
    for form, name in ((diff.encode(), "diff"), (mail(diff, "quoted-printable"), "mail")):
        patch = tmp_path / name
        patch.write_bytes(form)
        line = next(number for number, text in enumerate(form.split(b"\n"), 1) if text.startswith(b"@@ -28,"))
        said = refusal(str(linux), patches=[patch])
        assert said.startswith(f"{patch}:{line}: does not apply to {KVM}/svm.c of {linux}")
        assert f"hunk {hunk}: git apply: patch failed: {KVM}/svm.c:28" in said
    good = tmp_path / "good.patch"
    good.write_text(diff_of(linux, big_change, tmp_path))
    with open_tree(str(linux), patches=[str(good)]) as tree:
        whole = contents(tree.source)
    refusal(str(linux), patches=[good, patch])
    with open_tree(str(linux), patches=[str(good)]) as tree:
        assert contents(tree.source) == whole
    assert "the tree has this patch already" in refusal(str(linux), patches=[good, good])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not a patch"),
        ("Hello.\n", "not a patch"),
        ("diff --git a/Makefile b/Makefile\nindex 1..2 100644\n", "not a patch"),
        (
            "--- a/Makefile\n+++ b/Makefile\n@@ -1,9 +1,9 @@\n-VERSION = 6\n+VERSION = 7\n",
            "not a patch: git apply: corrupt patch",
        ),
        ("--- a/none.c\n+++ b/none.c\n@@ -1 +1 @@\n-a\n+b\n", "p:1: does not apply to none.c of"),
        ("--- a/../out\n+++ b/../out\n@@ -1 +1 @@\n-a\n+b\n", "p:1: does not apply to ../out of"),
        ("--- /dev/null\n+++ b/../out\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to ../out of"),
        ("--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to .git/hooks/x of"),
        ("--- /dev/null\n+++ b/Makefile/x\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to Makefile/x of"),
        ("--- /dev/null\n+++ b/arch/x86\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to arch/x86 of"),
        ("--- /dev/null\n+++ b/Makefile\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to Makefile of"),
        ("--- /dev/null\n+++ b/linked/x\n@@ -0,0 +1 @@\n+b\n", "p:1: does not apply to linked/x of"),
        ('--- /dev/null\n+++ "b/a\\033[31m"\n@@ -0,0 +1 @@\n+b\n', "unprintable"),
        ("commit " + "0" * 40 + "\n\ncommit " + "1" * 40 + "\n", "holds 2 commits"),
    ],
)
def test_what_is_no_patch_for_a_tree(folder: Path, tmp_path: Path, text: str, expected: str) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (folder / "linked").symlink_to(outside)
    patch = tmp_path / "p"
    patch.write_text(text)
    assert expected in refusal(str(folder), patches=[patch])
    assert not [path for path in tmp_path.rglob("*") if path.name in ("out", "x")]


def test_patch_files_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    assert "No such file" in refusal(str(folder), patches=[tmp_path / "none.patch"])
    assert "Is a directory" in refusal(str(folder), patches=[tmp_path])


def test_a_checkout_with_changes_is_refused(linux: Path, tmp_path: Path) -> None:
    patch = linux / "0001.diff"  # where format-patch puts it: it is no change of the kernel
    patch.write_text(diff_of(linux, big_change, tmp_path))
    with open_tree(str(linux), patches=[str(patch)]) as tree:
        assert not (tree.source / patch.name).exists()
    (linux / KVM / "ignored.o").touch()
    edit(linux / KVM / "x86.c", "x", "y")
    (linux / KVM / "not yet added.c").touch()
    before = snapshot(linux)
    said = refusal(str(linux), patches=[patch])
    assert f"{KVM}/x86.c, {KVM}/not yet added.c: commit or stash them, or give --rev HEAD" in said
    with open_tree(str(linux), "HEAD", patches=[str(patch)]) as tree:
        assert (tree.source / KVM / "x86.c").read_text() == "int x;\n"
    assert snapshot(linux) == before


def test_what_was_cut_off_is_made_whole(linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.patch", tmp_path / "two.patch"
    one.write_text(diff_of(linux, big_change, tmp_path))
    two.write_text(diff_of(linux, lambda tree: edit(tree / KVM / "old.c", "old", "other"), tmp_path))
    with open_tree(str(linux), patches=[str(two)]) as tree:
        whole = contents(tree.source)
    with monkeypatch.context() as during:
        placed: list[str] = []

        def place(file: Path, target: Path, path: str) -> None:
            if placed:
                raise KeyboardInterrupt
            placed.append(path)
            (target / path).unlink(missing_ok=True)
            (target / path).write_bytes(file.read_bytes()[:3])

        during.setattr(overlay, "_place", place)
        with pytest.raises(KeyboardInterrupt), open_tree(str(linux), patches=[str(one)]):
            pass
    with open_tree(str(linux), patches=[str(two)]) as tree:
        assert contents(tree.source) == whole


def test_the_environment_of_a_git_hook_and_of_the_user_changes_nothing(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text(diff_of(linux, lambda tree: edit(tree / KVM / "x86.c", "int x;", "int x; "), tmp_path))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "gitconfig").write_text("[apply]\n\twhitespace = error\n[core]\n\tquotePath = false\n")
    before = snapshot(linux)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / ".git/index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    for rev in (None, "HEAD"):
        with open_tree(str(linux), rev, patches=[str(patch)]) as tree:
            assert (tree.source / KVM / "x86.c").read_text() == "int x; \n"
    assert snapshot(linux) == before
