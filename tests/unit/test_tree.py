"""Protects the user's checkout: it is read, never written, and what is built is exactly what was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.configure.tree import open_tree
from kbuild.errors import UserError
from tests.unit.conftest import git, snapshot


@pytest.fixture(autouse=True)
def in_private_cache(private_cache: None) -> None:
    """No test here may write to the cache that everybody uses."""


def test_checkout_is_not_touched(checkout: Path) -> None:
    (checkout / ".config").write_text("CONFIG_KVM=y\n")
    (checkout / "arch/x86/kvm/x86.o").write_text("an object of the user's own build\n")
    (checkout / "arch/x86/kvm/x86.c").write_text("int changed;\n")
    (checkout / "arch/x86/kvm/new.c").write_text("int fresh;\n")
    os.utime(checkout / "Makefile", ns=(1, 1))  # git would want to refresh its index for this
    before = snapshot(checkout)
    with open_tree(str(checkout)) as tree:
        assert (tree.source / "arch/x86/kvm/x86.c").read_text() == "int changed;\n"
        assert (tree.source / "arch/x86/kvm/new.c").exists(), "an untracked source file belongs to the tree"
        assert not (tree.source / ".config").exists()
        assert not (tree.source / "arch/x86/kvm/x86.o").exists()
        assert tree.patch
        assert b"+int changed;\n" in tree.patch
        assert b"b/arch/x86/kvm/new.c\n@@ -0,0 +1 @@\n+int fresh;\n" in tree.patch, "what it was built from is whole"
    with open_tree(str(checkout), "HEAD") as tree:
        assert (tree.source / "arch/x86/kvm/x86.c").read_text() == "int x;\n"
    assert snapshot(checkout) == before


def test_a_checkout_with_many_files_is_whole(checkout: Path) -> None:
    """The kernel has 80 000 names, some megabytes of them."""
    many = checkout / "drivers" / ("a-rather-long-name-of-a-folder-" * 4)
    many.mkdir(parents=True)
    for number in range(1000):
        (many / f"{number}.c").touch()
    (many / 'with a "quote", a\ttab and ü.c').touch()
    with open_tree(str(checkout)) as tree:
        assert snapshot(tree.source).keys() == {path for path in snapshot(checkout) if not path.startswith(".git/")}


def test_unchanged_files_keep_their_time(folder: Path) -> None:
    with open_tree(str(folder)) as tree:
        first = {path: path.stat().st_mtime_ns for path in tree.source.rglob("*") if path.is_file()}
    (folder / "arch/x86/kvm/x86.c").write_text("int y;\n")
    with open_tree(str(folder)) as tree:
        changed = {path.name for path, time in first.items() if path.stat().st_mtime_ns != time}
    assert changed == {"x86.c"}


def test_older_content_is_rebuilt(folder: Path) -> None:
    """A file that is put back has an old time; its copy has to be newer than the objects made meanwhile."""
    source = folder / "arch/x86/kvm/x86.c"
    old = source.stat()
    with open_tree(str(folder)):
        source.write_text("int y;\n")
    with open_tree(str(folder)) as tree:
        middle = (tree.source / "arch/x86/kvm/x86.c").stat().st_mtime_ns
    source.write_text("int x;\n")
    os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns))
    with open_tree(str(folder)) as tree:
        assert (tree.source / "arch/x86/kvm/x86.c").read_text() == "int x;\n"
        assert (tree.source / "arch/x86/kvm/x86.c").stat().st_mtime_ns > middle


def test_links_are_copied_as_links(folder: Path) -> None:
    """The kernel's scripts/dtc/include-prefixes/ has some to folders."""
    (folder / "to-folder").symlink_to("arch/x86")
    (folder / "to-file").symlink_to("Makefile")
    (folder / "to-nothing").symlink_to("none")
    with open_tree(str(folder)) as tree:
        links = {path.name: str(path.readlink()) for path in tree.source.iterdir() if path.is_symlink()}
    assert links == {"to-folder": "arch/x86", "to-file": "Makefile", "to-nothing": "none"}


def test_deleted_files_go_and_identity_follows_contents(folder: Path) -> None:
    extra = folder / "arch/x86/kvm/extra.c"
    with open_tree(str(folder)) as tree:
        without = tree.identity
    extra.write_text("int z;\n")
    with open_tree(str(folder)) as tree:
        assert tree.identity != without
    extra.unlink()
    with open_tree(str(folder)) as tree:
        assert not (tree.source / "arch/x86/kvm/extra.c").exists()
        assert tree.identity == without


def test_what_has_become_of_another_kind_is_copied_as_it_is(folder: Path) -> None:
    """A file, a folder and a link in each other's place; never is anything written through a link."""
    place, real = folder / "x", folder / "real"
    real.mkdir()
    (real / "f").write_text("of real\n")

    def as_folder() -> None:
        place.mkdir()
        (place / "f").write_text("of x\n")

    def contents(tree: Path) -> dict[str, object]:
        return {path: told[1:] for path, told in snapshot(tree).items()}

    makers: dict[str, Callable[[], object]] = {
        "file": lambda: place.write_text("a file\n"),
        "folder": as_folder,
        "link": lambda: place.symlink_to("real"),
    }
    for first in makers:
        for then in makers:
            for kind in (first, then):
                makers[kind]()
                with open_tree(str(folder)) as tree:
                    assert contents(tree.source) == contents(folder), (first, then, kind)
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()


def test_a_shallow_checkout_goes_on_after_a_fetch(checkout: Path, tmp_path: Path) -> None:
    """Of one a clone borrows nothing: it has the objects of its first day."""
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", str(shallow))
    with open_tree(str(shallow), "HEAD") as tree:
        assert (tree.source / "arch/x86/kvm/x86.c").read_text() == "int x;\n"
    (checkout / "arch/x86/kvm/x86.c").write_text("int later;\n")
    git(checkout, "commit", "--quiet", "--all", "--message=later")
    git(shallow, "fetch", "--quiet", "--depth=1", "origin")
    with open_tree(str(shallow), "FETCH_HEAD") as tree:
        assert (tree.source / "arch/x86/kvm/x86.c").read_text() == "int later;\n"


def test_rev_is_that_commit(checkout: Path) -> None:
    (checkout / "arch/x86/kvm/x86.c").write_text("int two;\n")
    git(checkout, "commit", "-qam", "two")
    for rev, text in [("HEAD~1", "int x;\n"), ("HEAD", "int two;\n")]:
        with open_tree(str(checkout), rev) as tree:
            assert (tree.source / "arch/x86/kvm/x86.c").read_text() == text
            assert tree.commit == git(checkout, "rev-parse", rev).strip()
            assert tree.version == "6.1.7"


def test_what_a_killed_git_left_is_in_nobody_s_way(checkout: Path) -> None:
    with open_tree(str(checkout), "HEAD") as tree:
        source = tree.source
    for name in ("index.lock", "HEAD.lock", "refs/heads/main.lock"):
        (source / ".git" / name).touch()
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=two")
    with open_tree(str(checkout), "HEAD") as tree:
        assert tree.commit == git(checkout, "rev-parse", "HEAD").strip()
    # A clone that did not come to its end has no repository under this name; what else is there is not the tree's.
    shutil.rmtree(source / ".git")
    (source.parent / ".src.new").mkdir()
    (source.parent / ".src.new/half").touch()
    with open_tree(str(checkout), "HEAD") as tree:
        assert git(tree.source, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("asked", "rev", "expected"),
    [
        ("nowhere", None, "no such folder"),
        ("debian:6", None, "write debian:X.Y"),
        ("debian:6.1", "HEAD", "is a package, not a git checkout"),
    ],
)
def test_what_is_no_tree(asked: str, rev: str | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected), open_tree(asked, rev):
        pass


def test_folders_that_are_no_tree(tmp_path: Path, checkout: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, rev, expected in [
        (empty, None, "there is no Makefile"),
        (empty, "HEAD", "is no git checkout"),
        (checkout, "nonsense", "no such commit"),
        (checkout, "--all", "not a commit"),
    ]:
        with pytest.raises(UserError, match=expected), open_tree(str(folder), rev):
            pass
    (checkout / "Makefile").write_text("all:\n")
    with pytest.raises(UserError, match="sets no VERSION"), open_tree(str(checkout)):
        pass


def test_a_copy_that_stopped_half_way_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's new content came half-way into the copy, and then the user took his change back."""
    path = folder / "arch/x86/kvm/x86.c"
    before = path.read_bytes()
    with open_tree(str(folder)) as tree:
        copy = tree.source / "arch/x86/kvm/x86.c"
    (folder / "arch/x86/kvm/a-new-one.c").write_text("int a;\n")
    path.write_text("int half;\n")
    write = Path.write_bytes

    def stop(self: Path, data: bytes) -> int:
        if self == copy:
            write(self, data[:3])
            raise KeyboardInterrupt
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt), open_tree(str(folder)):
            pass
    assert copy.read_bytes() == b"int"
    (folder / "arch/x86/kvm/a-new-one.c").unlink()
    path.write_bytes(before)
    with open_tree(str(folder)) as tree:
        assert copy.read_bytes() == before
        assert not (tree.source / "arch/x86/kvm/a-new-one.c").exists()
