"""Protects whose a machine by SSH is, and in which state it is given back, where the order had left it otherwise."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import LONG, Tool, at_work, wait_for
from tests.integration.guest import Guest, load, state

pytestmark = pytest.mark.usefixtures("all_kernels")


def test_what_cannot_be_unloaded_is_ended_by_a_boot(tool: Tool, guest: Guest) -> None:
    """Something that an order has begun keeps a module under test: it may not stay in somebody's kernel."""
    before, boot = state(guest), guest.boot()
    with at_work(tool, load(guest.image, guest.host_file(), LONG)) as work:
        hold = "for n in $(seq 600); do if [ -e /dev/kvm ]; then exec sleep 1000 < /dev/kvm; fi; sleep 0.1; done"
        guest.ssh(f"nohup sh -c '{hold}' > /dev/null 2>&1 &")
        out, err = work.communicate(timeout=900)
    assert work.returncode == 10, out + err
    assert "has /dev/kvm open" in out
    assert guest.boot() != boot
    assert state(guest) == before


def test_a_cpu_that_was_taken_away_is_given_back(tool: Tool, guest: Guest) -> None:
    online, boot = "/sys/devices/system/cpu/cpu1/online", guest.boot()
    guest.monitor("device_add EPYC-x86_64-cpu,id=second,socket-id=0,core-id=1,thread-id=0")
    guest.ssh(f"until echo 1 > {online}; do sleep 0.1; done 2> /dev/null")
    with at_work(tool, load(guest.image, guest.host_file(), LONG)) as interrupted:
        guest.ssh(f"echo 0 > {online}")
        interrupted.terminate()
        interrupted.communicate(timeout=900)
    assert guest.ssh(f"cat {online}") == "1\n"
    assert guest.boot() == boot
    guest.monitor("device_del second")
    guest.ssh(f"while test -e {online}; do sleep 0.1; done")


def test_who_does_not_answer_is_left_alone(tool: Tool, guest: Guest) -> None:
    """Somebody may be at work there, or the way to it is broken: it is not for us to switch it off."""
    boot = guest.boot()
    guest.monitor("set_link nic off")
    try:
        done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
    finally:
        guest.monitor("set_link nic on")
        guest.wait()
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search("its power is left alone, .*by hand if need be .*system_reset", tool.transcript()["reason"])
    assert guest.boot() == boot


def test_a_machine_with_two_host_files_is_one(tool: Tool, guest: Guest) -> None:
    """The run that is at work there goes on, whatever its host is called."""
    other = guest.folder / "other.toml"
    other.write_text(guest.host_file().read_text().replace('id = "testhost"', 'id = "other"'))
    with at_work(tool, load(guest.image, guest.host_file(), LONG)) as work:
        done = tool.run(*load(guest.image, other, "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert "another run of yours is at work there, as host testhost; wait for it" in done.stdout
        out, err = work.communicate(timeout=900)
    assert work.returncode == 0, out + err


def test_what_a_kernel_says_while_the_connection_is_lost_is_its_own(tool: Tool, guest: Guest) -> None:
    """The log of the same boot is judged: here, of a task that hangs, and nothing emulates this machine for us."""
    before = state(guest)
    make = (
        "truncate -s 16M /root/fs && mke2fs -q -t ext4 /root/fs && mkdir -p /root/at && mount -o loop /root/fs /root/at"
    )
    guest.ssh(f"{make} && fsfreeze -f /root/at")
    try:
        with at_work(tool, load(guest.image, guest.host_file(console=""), LONG)) as work:
            guest.ssh("nohup touch /root/at/x > /dev/null 2>&1 &")
            guest.monitor("set_link nic off")
            console = guest.folder / "console.log"
            wait_for(lambda: b"blocked for more than" in console.read_bytes(), work)
            guest.monitor("set_link nic on")
            out, err = work.communicate(timeout=900)
    finally:
        guest.monitor("set_link nic on")
        guest.ssh("fsfreeze -u /root/at; umount /root/at; rm -rf /root/fs /root/at", check=False)
    assert work.returncode == 10, out + err
    one = tool.transcript()
    assert one["status"] == "FAIL"
    assert "blocked for more than" in str(one["findings"])
    assert "still in the same boot" in str(one), "by the log, and not by an agent that still talked"
    assert state(guest) == before


def test_words_of_a_host_file_mean_files_of_the_caller(tool: Tool, guest: Guest) -> None:
    host = guest.host_file(options='["-F", "ssh_config"]')
    argv = tool.argv(*load(guest.image, host, "vendor-alone"))
    done = subprocess.run(
        argv, env=tool.environment, cwd=guest.folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_s_keys_are_lost_by_provisioning(tool: Tool, guest: Guest, tmp_path: Path) -> None:
    """A user who is somebody's is refused; who comes second does not lock out who came first."""

    def provision(*words: str) -> tuple[int, str]:
        done = tool.run("host.provision", "testhost", "--ssh", f"-F {guest.ssh_config}", *words)
        return done.returncode, done.stdout + done.stderr

    keys = [tmp_path / "one.pub", tmp_path / "two.pub"]
    for number, file in enumerate(keys):
        file.write_text(f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 42}{number} somebody{number}\n")
    guest.ssh("useradd -m ci && mkdir ~ci/.ssh && echo ssh-ed25519 theirs > ~ci/.ssh/authorized_keys")
    try:
        status, said = provision("--user", "ci", "--key", str(keys[0]))
        assert status != 0
        assert "there is such a user, whom this program has not made" in said
        assert guest.ssh("cat ~ci/.ssh/authorized_keys") == "ssh-ed25519 theirs\n"
        for file in keys:
            status, said = provision("--key", str(file))
            assert status == 0, said
        assert guest.ssh("cat ~kvm-kbuild/.ssh/authorized_keys") == "".join(one.read_text() for one in keys)
        assert provision("--key", str(keys[0]))[1].splitlines()[-1] == "nothing to do"
    finally:
        provision("--undo")
        guest.ssh("userdel -r ci", check=False)
