"""The initramfs is what the kernel's own reader takes, holds what was asked for, and is the same every time."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.hosts.initramfs import write_initramfs


class Entry(NamedTuple):
    name: str
    mode: int
    device: tuple[int, int]
    data: bytes
    owner: tuple[int, int]
    time: int


def read_newc(data: bytes) -> list[Entry]:
    """After Documentation/driver-api/early-userspace/buffer-format.rst of Linux 6.1."""
    entries: list[Entry] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, time, size, _, _, major, minor, name_size, _ = fields
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at = (at + 110 + name_size + 3) & ~3
        content = data[at : at + size]
        assert len(content) == size
        at = (at + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return entries
        entries.append(Entry(name[:-1].decode(), mode, (major, minor), content, (uid, gid), time))


def test_holds_the_files_their_folders_and_the_console(tmp_path: Path) -> None:
    module = tmp_path / "kvm.ko"
    module.write_bytes(b"\x7fELF" + bytes(1001))
    target = tmp_path / "initramfs"
    write_initramfs(target, {"/modules/extra/kvm.ko": module, "init": b"#!", "empty": b""})

    entries = {entry.name: entry for entry in read_newc(target.read_bytes())}
    assert set(entries) == {"dev", "dev/console", "empty", "init", "modules", "modules/extra", "modules/extra/kvm.ko"}
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert entries["modules/extra/kvm.ko"].mode == stat.S_IFREG | 0o644
    assert entries["modules/extra/kvm.ko"].data == module.read_bytes()
    assert entries["modules"].mode == stat.S_IFDIR | 0o755
    # Documentation/admin-guide/devices.txt: /dev/console is character device 5, 1.
    assert (stat.S_IFMT(entries["dev/console"].mode), entries["dev/console"].device) == (stat.S_IFCHR, (5, 1))
    assert {(entry.owner, entry.time) for entry in entries.values()} == {((0, 0), 0)}


def test_a_folder_comes_before_what_is_in_it(tmp_path: Path) -> None:
    write_initramfs(tmp_path / "a", {"x/y/z": b"", "x-1": b"", "x/b": b"", "init": b""})
    names = [entry.name for entry in read_newc((tmp_path / "a").read_bytes())]
    assert len(names) == len(set(names))
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_initramfs(tmp_path / "a", {"init": b"1", "b": b"2"})
    write_initramfs(tmp_path / "b", {"/b": b"2", "/init": b"1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", ["", "/", "../init", "a/../../b", "a\0b", "TRAILER!!!", "dev", "/dev/console"])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        write_initramfs(tmp_path / "a", {name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"a": b"", "/a": b""}])
def test_two_files_in_one_place_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError):
        write_initramfs(tmp_path / "a", files)


def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="absent"):
        write_initramfs(tmp_path / "a", {"init": tmp_path / "absent"})
    assert list(tmp_path.iterdir()) == []
