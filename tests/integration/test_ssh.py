"""Protects machines that are reached by SSH: what is run there, what is told of failures, and that they are given back.

The machine is a Debian system in QEMU with a real sshd. Nothing is ever loaded into the kernel that runs the tests.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kbuild.load.agent import build_agent
from kbuild.load.protocol import Verb, encode
from kbuild.paths import PROJECT
from tests.integration.conftest import LONG, Tool, at_work, wait_for
from tests.integration.guest import Guest, load, state


def test_orders_leave_a_machine_as_it_was(tool: Tool, guest: Guest) -> None:
    """The modules of its own kernel, tried there: they pass, and afterwards all is as before."""
    before = state(guest)
    done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone", "wrong-vendor-first"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [one["status"] for one in tool.record()["transcripts"]] == ["PASS", "PASS"]
    assert tool.processes() == {}, "the command that shows its console is over, too"
    assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
def test_the_users_own_configuration_says_how_it_is_reached(tool: Tool, guest: Guest) -> None:
    """A machine behind another one: ssh's own jump host, with a port and an address that only that one knows."""
    before, config = state(guest), guest.ssh_config.read_text()
    behind = re.sub(r"Port \d+", "Port 22", config.replace("127.0.0.1", "10.0.2.15")) + "  ProxyJump outside\n"
    guest.ssh_config.write_text(config.replace("Host testhost", "Host outside") + behind)
    try:
        done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "10.0.2.15" in guest.ssh("echo $SSH_CONNECTION").split()[0], "it was not gone over the other one"
    finally:
        guest.ssh_config.write_text(config)
    assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
def test_a_parameter_that_was_set_there_is_set_again(tool: Tool, guest: Guest) -> None:
    """What somebody loaded with a parameter of his is loaded so again."""
    guest.ssh("rmmod kvm_amd && modprobe kvm_amd nested=0 && echo 7 > /sys/module/kvm/parameters/halt_poll_ns_grow")
    try:
        done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert guest.ssh("cat /sys/module/kvm_amd/parameters/nested /sys/module/kvm/parameters/halt_poll_ns_grow") == (
            "0\n7\n"
        )
    finally:
        guest.ssh("rmmod kvm_amd; rmmod kvm; modprobe kvm_amd")


def test_whom_nobody_knows_is_not_talked_to(tool: Tool, guest: Guest) -> None:
    """Another host key, a key that is refused, nobody there: each is the host's failure, in one line."""
    known, config = guest.known_hosts.read_text(), guest.ssh_config.read_text()
    other = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(guest.folder / "other")], capture_output=True
    )
    assert other.returncode == 0
    try:
        for known_hosts, words, expected in (
            (
                f"testhost {(guest.folder / 'other.pub').read_text()}",
                config,
                "its host key is not the one that is known",
            ),
            ("", config, "its host key is not the one that is known"),
            (
                known,
                config.replace(f"{guest.folder}/key", f"{guest.folder}/other"),
                "refuses to let us in: .*Permission denied",
            ),
            (known, re.sub(r"Port \d+", "Port 1", config), "cannot be reached: .*Connection refused"),
        ):
            guest.known_hosts.write_text(known_hosts)
            guest.ssh_config.write_text(words)
            done = tool.run(*load(guest.image, guest.host_file(power=""), "vendor-alone"))
            assert done.returncode == 3, done.stdout + done.stderr
            one = tool.transcript()
            assert one["status"] == "MISS"
            assert re.search(expected, one["reason"]), one["reason"]
            checked = tool.run("host.check", "--host", guest.host_file(power=""))
            assert checked.returncode == 3
            assert re.search(expected, checked.stdout), checked.stdout
    finally:
        guest.known_hosts.write_text(known)
        guest.ssh_config.write_text(config)
        for name in ("other", "other.pub"):
            (guest.folder / name).unlink()


def test_a_full_disk_is_the_machines(tool: Tool, guest: Guest) -> None:
    """It is said before anything is changed there."""
    before = state(guest)
    guest.ssh("fallocate -l $(( $(df --output=avail -B1 /var | tail -1) - 50000000 )) /var/full")
    try:
        done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert re.search(r"\d+ MB are free in /var/lib, and 200 are needed", tool.transcript()["reason"])
        assert state(guest) == before
    finally:
        guest.ssh("rm /var/full")


def test_virtual_machines_are_left_alone(tool: Tool, guest: Guest, tmp_path: Path) -> None:
    """A machine on which some run is not touched, unless its file says that they may be ended."""
    agent = build_agent(tmp_path)
    subprocess.run(
        ["ssh", "-F", guest.ssh_config, "testhost", "cat > /root/agent && chmod 700 /root/agent"],
        input=agent.read_bytes(),
        check=True,
        timeout=60,
    )
    holder = subprocess.Popen(
        ["ssh", "-F", guest.ssh_config, "testhost", "/root/agent --stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(encode(1, Verb.HOLD, "vm"))
        holder.stdin.flush()
        lines = iter(holder.stdout.readline, b"")
        assert any(b'"ev":"result"' in line for line in lines), "the agent ended"
        before = state(guest)
        done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert "virtual machines run there" in tool.transcript()["reason"]
        assert state(guest) == before
    finally:
        holder.kill()
        holder.wait()
        guest.ssh("pkill -x agent; rm /root/agent", check=False)


@pytest.mark.usefixtures("all_kernels")
def test_after_a_killed_run_the_machine_is_put_back(tool: Tool, guest: Guest) -> None:
    """`kill -9` in the middle of an order: the next run, or `host.restore`, puts back what that one had found."""
    before = state(guest)
    for again in ("host.restore", "load"):
        with at_work(tool, load(guest.image, guest.host_file(), LONG)) as killed:
            killed.kill()
            killed.communicate()
        assert guest.ssh("cat /var/lib/kvm-kbuild/owner").strip()
        if again == "load":
            done = tool.run(*load(guest.image, guest.host_file(), "vendor-alone"))
        else:
            done = tool.run("host.restore", guest.host_file())
        assert done.returncode == 0, done.stdout + done.stderr
        assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
def test_ctrl_c_gives_the_machine_back(tool: Tool, guest: Guest) -> None:
    """An interrupted run ends with 130, and the machine is as it was."""
    before = state(guest)
    with at_work(tool, load(guest.image, guest.host_file(), LONG)) as interrupted:
        interrupted.terminate()
        out, err = interrupted.communicate(timeout=200)
    assert interrupted.returncode == 130, out + err
    assert state(guest) == before
    assert not tool.processes()


@pytest.mark.usefixtures("all_kernels")
def test_a_machine_is_provisioned_and_that_is_undone(tool: Tool, guest: Guest) -> None:
    """--check changes nothing, nor does a second time; a user who may do one thing is enough; --undo leaves nothing."""

    def files() -> str:
        return guest.ssh("find /etc /usr/local /home /var/lib/kvm* -type f 2>/dev/null | sort; cut -d: -f1 /etc/passwd")

    def provision(*words: str) -> subprocess.CompletedProcess[str]:
        return tool.run("host.provision", "testhost", "--ssh", f"-F {guest.ssh_config}", *words)

    key = ("--key", f"{guest.folder}/key.pub")
    (guest.folder / "key.pub").write_text((guest.image.folder / "key.pub").read_text())
    before = files()
    checked = provision(*key, "--check")
    assert (checked.returncode, "would make the user kvm-kbuild" in checked.stdout) == (3, True), checked.stderr
    assert files() == before
    try:
        first = provision(*key)
        assert first.returncode == 0, first.stdout + first.stderr
        again = provision(*key)
        assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "nothing to do")
        assert provision(*key, "--check").returncode == 0
        only = guest.ssh("sudo -l -U kvm-kbuild")
        assert "(root) NOPASSWD: /usr/local/sbin/kvm-kbuild-host" in only

        as_user = guest.host_file(
            target='"kvm-kbuild@testhost"', sudo="true", program='"/usr/local/sbin/kvm-kbuild-host"'
        )
        done = tool.run(*load(guest.image, as_user, "vendor-alone"))
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        undone = provision("--undo")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert files() == before
    assert provision("--undo").stdout.strip() == "nothing to do"


def test_another_system_is_left_as_it_is(guest: Guest) -> None:
    """Where packages have other names nothing is changed, and a person is told what to do."""
    script = (PROJECT / "scripts/provision-host").read_text()
    there = "echo 'ID=fedora' > /tmp/os && unshare -m sh -c 'mount --bind /tmp/os /etc/os-release && sh -s -- --key k'"
    argv = ["ssh", "-F", str(guest.ssh_config), "testhost", there]
    done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "nothing was changed" in done.stdout
    assert "kvm_intel and kvm_amd not loaded at boot" in done.stdout


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("console", [True, False])
def test_a_panic_is_the_kernels(tool: Tool, guest: Guest, *, console: bool) -> None:
    """Told by the console, or by what ramoops has kept until the next boot."""
    before = state(guest)
    host = guest.host_file() if console else guest.host_file(console="")
    with at_work(tool, load(guest.image, host, LONG, "vendor-alone")) as work:
        guest.ssh("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", check=False)
        out, err = work.communicate(timeout=900)
    assert work.returncode == 10, out + err
    panicked, after = tool.record()["transcripts"]
    assert panicked["status"] == "FAIL"
    assert "sysrq triggered crash" in str(panicked["findings"])
    # In the same kernel, booted once more by kexec.
    assert after["status"] == "PASS", after["reason"]
    assert state(guest) == before


# What Debian's kdump-tools does in the kernel that is booted by a panic.
SAVE = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -o remount,rw /
when=$(date +%Y%m%d%H%M)
mkdir -p /var/crash/$when
vmcore-dmesg /proc/vmcore >/var/crash/$when/dmesg.$when
sync
echo b >/proc/sysrq-trigger
"""
CRASH_KERNEL = """\
set -e
kernel=/boot/vmlinuz-$(uname -r) initrd=/boot/initrd.img-$(uname -r)
"""


@pytest.mark.usefixtures("all_kernels")
def test_a_panic_is_told_by_kdump(tool: Tool, guest: Guest) -> None:
    """Without a console: a second kernel, in memory that the first one leaves alone, has written down the log."""
    before, boot = state(guest), guest.boot()
    guest.ssh(f"{CRASH_KERNEL}kexec -l $kernel --initrd=$initrd --reuse-cmdline --append=crashkernel=160M")
    guest.ssh("systemctl kexec", check=False)
    guest.wait(but=boot)
    try:
        guest.ssh(f"cat >/save <<'END'\n{SAVE}END\nchmod 755 /save; sync")
        words = "root=/dev/vda1 console=ttyS0 nr_cpus=1 reset_devices init=/save"
        guest.ssh(f"{CRASH_KERNEL}kexec -p $kernel --initrd=$initrd --command-line='{words}'")
        assert "kdump" in tool.run("host.check", "--host", guest.host_file(console="")).stdout
        with at_work(tool, load(guest.image, guest.host_file(console=""), LONG)) as work:
            guest.ssh("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", check=False)
            out, err = work.communicate(timeout=900)
        assert work.returncode == 10, out + err
        one = tool.transcript()
        assert (one["status"], "sysrq triggered crash" in str(one["findings"])) == ("FAIL", True), one
        assert "its kernel's last words are in /var/crash/" in (tool.latest() / "log.jsonl").read_text()
    finally:
        guest.ssh("rm -rf /save /var/crash")
    assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
def test_a_lost_network_is_the_hosts(tool: Tool, guest: Guest) -> None:
    """The same boot answers again later: nothing of the kernel's, and what it had loaded is taken out again."""
    before = state(guest)
    with at_work(tool, load(guest.image, guest.host_file(), LONG)) as work:
        guest.monitor("set_link nic off")
        logs = "*/hosts/*/boot-*/emulator.log"
        wait_for(lambda: any(b"state searching" in log.read_bytes() for log in tool.runs.glob(logs)), work)
        guest.monitor("set_link nic on")
        out, err = work.communicate(timeout=900)
    assert work.returncode == 3, out + err
    one = tool.transcript()
    assert (one["status"], "still in the same boot" in one["reason"]) == ("MISS", True), one["reason"]
    assert state(guest) == before


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("system_reset", "it was reset, or lost its power"),
        ("stop", "until its power was cycled: it hung, or lost its network"),
    ],
)
def test_what_nothing_tells_is_not_blamed(tool: Tool, guest: Guest, does: str, reason: str) -> None:
    """A machine loses its power, or stands still, with nothing on its console: nobody can say whose fault it is."""
    # A short limit for what never comes back by itself.
    host = guest.host_file()
    host.write_text(host.read_text().replace("boot_s = 240", "boot_s = 120"))
    with at_work(tool, load(guest.image, host, LONG)) as work:
        guest.monitor(does)
        out, err = work.communicate(timeout=1200)
    assert work.returncode == 3, out + err
    one = tool.transcript()
    assert (one["status"], reason in one["reason"]) == ("ERROR", True), one["reason"]
    guest.wait()
