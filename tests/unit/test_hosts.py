"""Host files are read strictly, and what a machine may keep on disk and in memory is bounded."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.hosts import spec
from kbuild.hosts.base import BootImage
from kbuild.hosts.emulator import CappedFile, Tail
from kbuild.hosts.qemu import kernel_words
from kbuild.paths import PROJECT
from kbuild.report.hosts import render

HOSTS = PROJECT / "profiles" / "hosts"
GOOD = """\
id = "h"
kind = "qemu"
gives = ["amd", "svm"]
[qemu]
cpu = "EPYC,+svm"
"""


@pytest.mark.parametrize("path", sorted(HOSTS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_projects_own_hosts_are_read(path: Path) -> None:
    assert spec.read_host(path).id == path.stem


def test_what_a_host_says_moves_nothing_on_a_terminal() -> None:
    """A backslash before a bracket is no escape of Rich's: it stays, and what is behind it is no style."""
    nasty = "[red]\\[/red]\x1b[2Jx"
    facts = {"host": "h", "kind": "ssh", "gives": ["amd"], "what": nasty, "hindrances": [nasty], "missing": [nasty]}
    out = io.StringIO()
    render({"asked": True, "hosts": [facts]}, stream=out)
    shown = "[red]\\[/red]\\x1b[2Jx"
    assert out.getvalue().count(shown) == 3
    assert "\x1b" not in out.getvalue()


def test_the_vendor_comes_from_what_the_host_gives() -> None:
    assert spec.read_host(HOSTS / "qemu-svm.toml").vendor == "amd"
    assert spec.read_host(HOSTS / "bochs-vmx.toml").vendor == "intel"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('[qemu]\ncpu = "EPYC,+svm"', "", r"\[qemu\] is missing"),
        ("[qemu]", '[bochs]\nmodel = "ryzen"\n[qemu]', r"\[bochs\] must not be there"),
        ('["amd", "svm"]', '["svm"]', "one vendor"),
        ('["amd", "svm"]', '["amd", "intel"]', "one vendor"),
        ('"svm"]', '"smv"]', r":3: gives\[1\]: invalid enum value 'smv'"),
        ("EPYC,+svm", "EPYC -monitor x", ":5: qemu.cpu"),
        ('kind = "qemu"', 'kind = "qemu"\nmemory = 1', ":3: memory: no such key"),
        ('kind = "qemu"', 'kind = "qemu"\nlimits = { boot_s = 0 }', "limits.boot_s"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "host.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=says) as error:
        spec.read_host(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_the_digest_changes_with_the_host_and_its_emulator(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(GOOD)
    host = spec.read_host(path)
    path.write_text("# a comment\n" + GOOD)
    assert spec.digest(spec.read_host(path), "1") == spec.digest(host, "1")
    assert spec.digest(host, "2") != spec.digest(host, "1")
    assert spec.digest(msgspec.structs.replace(host, cpus=2), "1") != spec.digest(host, "1")
    # A big kernel gets more memory and time on the same machine.
    assert spec.digest(msgspec.structs.replace(host, memory_mb=512), "1") == spec.digest(host, "1")


def test_a_big_kernel_gets_more() -> None:
    host = spec.read_host(PROJECT / "profiles/hosts/bochs-vmx.toml")
    assert host.big_kernel is not None
    assert host.for_kernel(3 << 20) == host
    big = host.for_kernel(9 << 20)
    assert (big.memory_mb, big.limits) == (host.big_kernel.memory_mb, host.big_kernel.limits)


def test_a_slow_kernel_gets_more_time() -> None:
    host = spec.read_host(PROJECT / "profiles/hosts/bochs-vmx.toml")
    slow, limits = host.for_kernel(3 << 20, 4), host.limits
    assert (slow.limits.boot_s, slow.limits.step_s, slow.limits.silent_s) == (
        limits.boot_s * 4,
        limits.step_s * 4,
        limits.silent_s * 4,
    )
    assert slow.limits.usual_boot_s == (limits.usual_boot_s or 0) * 4, "a slow kernel is no slow machine"
    assert spec.digest(slow, "1") == spec.digest(host, "1")


@pytest.mark.parametrize("name", ["qemu-svm", "bochs-vmx"])
def test_an_emulator_that_is_not_installed_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = spec.read_host(HOSTS / f"{name}.toml")
    monkeypatch.setenv("PATH", str(tmp_path))
    program = {"qemu": "qemu-system-x86_64", "bochs": "bochs"}[host.kind]
    assert any(program in line for line in spec.check(host))
    with pytest.raises(HarnessError, match=f"{program} is not installed"):
        spec.start(host, BootImage(tmp_path / "k", tmp_path / "i", ()), tmp_path / "logs")
    with pytest.raises(HarnessError):
        spec.describe(host)


@pytest.mark.parametrize("word", ["", "a b", "quiet\nKERNEL /other", "\u00e4"])
def test_a_kernel_word_cannot_become_something_else(word: str) -> None:
    with pytest.raises(UserError):
        kernel_words(["quiet", word])


def test_a_log_stops_at_its_limit_and_says_what_was_cut(tmp_path: Path) -> None:
    log = CappedFile(tmp_path / "log", limit=10)
    log.write(b"12345678")
    log.write(b"90abc")
    log.write(b"def")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"1234567890\n[kvm-kbuild: 6 more bytes came and were cut here]\n"


def test_a_log_within_its_limit_is_as_it_came(tmp_path: Path) -> None:
    log = CappedFile(tmp_path / "log", limit=3)
    log.write(b"abc")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"abc"


def test_a_tail_keeps_the_end() -> None:
    tail = Tail(4)
    for piece in (b"ab", b"cdefghij", b"k"):
        tail.add(piece)
    assert bytes(tail.data) == b"hijk"
