"""Protects machines whose GRUB boots a kernel under test once: that it does, and that nothing of it is left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.conftest import LONG, Tool, at_work, wait_for
from tests.integration.guest import Guest, load, load_files, state

SOMEBODYS = "menuentry 'rescue' { reboot }"
"""An entry in custom.cfg that was there before, without an end of line."""


@pytest.fixture
def host(guest: Guest) -> Path:
    """The machine's host file."""
    return guest.host_file(kernel='"install"')


@pytest.fixture(scope="session")
def server(shared_tool: Tool) -> Path:
    """A folder with a kernel for real machines, which is not the machine's own, and its modules."""
    done = shared_tool.run("build", "--flavour", "server")
    assert done.returncode == 0, done.stdout + done.stderr
    return shared_tool.latest() / "artifacts"


def words(folder: Path, host: Path, *orders: str) -> list[str]:
    """For `inv load` with that kernel."""
    return load_files(folder, folder / "bzImage", host, *orders)


def boots(guest: Guest, since: int) -> list[str]:
    """What GRUB has booted since then, by its own words: `own` and `tested`."""
    log = (guest.folder / "console.log").read_bytes()[since:].decode("utf-8", "replace")
    entries: list[str] = re.findall(r"Booting `([^']*)'", log)
    return ["tested" if entry == "kvm-kbuild" else "own" for entry in entries]


def position(guest: Guest) -> int:
    """Where its console is now."""
    return (guest.folder / "console.log").stat().st_size


HINDRANCES = {
    "no-grub-cfg": (
        "mv grub.cfg x",
        "mv x grub.cfg",
        'it has no /boot/grub/grub.cfg, .*say kernel = "kexec" in its file',
    ),
    "custom-is-not-read": (
        "cp -p grub.cfg x; sed -i /custom.cfg/d grub.cfg",
        "mv x grub.cfg",
        "its grub.cfg does not read custom.cfg: put Debian's 41_custom back",
    ),
    "no-grubenv": (
        "mv grubenv x",
        "mv x grubenv",
        "no environment to keep next_entry in: grub-editenv /boot/grub/grubenv create",
    ),
    "somebody-elses-next-entry": (
        "grub-editenv grubenv set next_entry=rescue",
        "grub-editenv grubenv unset next_entry",
        "its GRUB is told to boot 'rescue' next, by somebody else: .*unset next_entry",
    ),
    "small-tmpfs": (
        "mkdir /run/g && cp grub* /run/g && mount -t tmpfs -o size=20m x /boot && "
        "mkdir /boot/grub && cp /run/g/* /boot/grub",
        "cd /; umount /boot; rm -r /run/g",
        "GRUB cannot write to its /boot .tmpfs.*: it has to be ext4, XFS or FAT in a partition; "
        r"\d+ MB are free in /boot, and 64 are needed: remove an old kernel",
    ),
    "read-only": (
        "mount --bind /boot /boot && mount -o remount,bind,ro /boot",
        "cd /; umount /boot",
        "its /boot is mounted read only: mount -o remount,rw",
    ),
}
"""What keeps GRUB from booting a kernel once: a command that brings it about in /boot/grub, one that mends it, and what
is said."""
ALWAYS = ("somebody-elses-next-entry", "small-tmpfs")
"""Those that are tried without --all-kernels: each takes most of a minute."""


def assert_left_alone(tool: Tool, guest: Guest, host: Path, which: str) -> None:
    breaks, mends, says = HINDRANCES[which]
    before = state(guest)
    try:
        guest.ssh(f"cd /boot/grub && {breaks}")
        checked = tool.run("host.check", "--json", "--host", host)
        assert checked.returncode == 3, checked.stdout + checked.stderr
        (looked,) = json.loads(checked.stdout)["hosts"]
        assert re.search(says, "; ".join(looked["hindrances"])), looked
        done = tool.run(*load(guest.image, host, "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        one = tool.transcript()
        assert (one["status"], len(one["reason"].splitlines())) == ("MISS", 1)
        assert re.search(says, one["reason"]), one["reason"]
    finally:
        guest.ssh(f"cd /boot/grub && {mends}")
    assert state(guest) == before


@pytest.mark.parametrize("which", ALWAYS)
def test_where_grub_cannot_do_it_the_machine_is_left_alone(tool: Tool, guest: Guest, host: Path, which: str) -> None:
    """In one line, which says what to do; the look ahead says the same."""
    assert_left_alone(tool, guest, host, which)


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("which", [which for which in HINDRANCES if which not in ALWAYS])
def test_nor_where_something_rarer_keeps_it(tool: Tool, guest: Guest, host: Path, which: str) -> None:
    """The same of others."""
    assert_left_alone(tool, guest, host, which)


def test_where_it_can_nothing_keeps_it(tool: Tool, host: Path) -> None:
    """A Debian as it is installed."""
    checked = tool.run("host.check", "--host", host)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.usefixtures("all_kernels")
def test_a_kernel_is_booted_once(tool: Tool, guest: Guest, host: Path, server: Path) -> None:
    """Orders pass on it; then the machine runs its own again, and /boot has what it had, entries of others among it."""
    guest.ssh(f'printf %s "{SOMEBODYS}" > /boot/grub/custom.cfg')
    try:
        before, since = state(guest), position(guest)
        done = tool.run(*words(server, host, "vendor-alone", "load-unload-load"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert [one["status"] for one in tool.record()["transcripts"]] == ["PASS", "PASS"]
        assert boots(guest, since) == ["tested", "own"]
        assert state(guest) == before
    finally:
        guest.ssh("rm /boot/grub/custom.cfg")


@pytest.mark.usefixtures("all_kernels")
def test_a_panic_brings_the_machines_own_kernel(tool: Tool, guest: Guest, host: Path, server: Path) -> None:
    """It is the kernel's FAIL, by what its console said; for the next order the same kernel is installed once more."""
    before, since = state(guest), position(guest)
    with at_work(tool, words(server, host, LONG, "vendor-alone")) as work:
        guest.ssh("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", check=False)
        out, err = work.communicate(timeout=1500)
    assert work.returncode == 10, out + err
    panicked, after = tool.record()["transcripts"]
    assert panicked["status"] == "FAIL"
    assert "sysrq triggered crash" in str(panicked["findings"])
    assert after["status"] == "PASS", after["reason"]
    assert boots(guest, since) == ["tested", "own", "tested", "own"]
    assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("when", ["goes down", "at work"])
def test_ctrl_c_leaves_nothing_in_boot(tool: Tool, guest: Guest, host: Path, server: Path, when: str) -> None:
    """Also where the machine is on its way down to that kernel already."""
    before = state(guest)
    if when == "at work":
        with at_work(tool, words(server, host, LONG)) as interrupted:
            interrupted.terminate()
            out, err = interrupted.communicate(timeout=600)
    else:
        interrupted = tool.start(*words(server, host, LONG))
        try:
            chosen = "grub-editenv /boot/grub/grubenv list"
            wait_for(lambda: "kvm-kbuild" in guest.ssh(chosen, check=False), interrupted)
            interrupted.terminate()
            out, err = interrupted.communicate(timeout=600)
        finally:
            interrupted.kill()
            interrupted.wait()
    assert interrupted.returncode == 130, out + err
    assert state(guest) == before
    assert not tool.processes()


@pytest.mark.usefixtures("all_kernels")
def test_a_kernel_that_grub_cannot_read(tool: Tool, guest: Guest, host: Path, server: Path, tmp_path: Path) -> None:
    """GRUB starts over with the machine's own: nothing waits at its menu."""
    before, since = state(guest), position(guest)
    for file in server.glob("*.ko"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kernel = (server / "bzImage").read_bytes()
    # Documentation/arch/x86/boot.rst: boot_flag, 0xAA55.
    assert kernel[0x1FE:0x200] == b"\x55\xaa"
    (tmp_path / "bzImage").write_bytes(kernel[:0x1FE] + bytes(2) + kernel[0x200:])
    done = tool.run(*words(tmp_path, host, "vendor-alone"))
    assert done.returncode == 3, done.stdout + done.stderr
    one = tool.transcript()
    assert one["status"] == "MISS"
    assert re.search("came back with .*, not with the kernel under test", one["reason"]), one["reason"]
    assert boots(guest, since) == ["tested", "own"]
    assert state(guest) == before
