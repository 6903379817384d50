"""Protects what is concluded of a machine that is reached by SSH, from what it says and from what ssh says of it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kbuild.cpus import Cpus
from kbuild.errors import HarnessError, UserError
from kbuild.hosts.spec import MIN_SILENT_S, HostSpec, cpus_of, read_host
from kbuild.hosts.ssh.bridge import LOG_LINES, Bridge, Errand, arguments, in_order, own_words, since
from kbuild.hosts.ssh.client import ALIVE_S, ALIVE_TIMES, SCRIPT, Client, UnreachableError, trouble_in
from kbuild.hosts.ssh.facts import Facts, hindrances, read_facts
from kbuild.paths import PROJECT
from kbuild.profile import SHIPPED

DATA = PROJECT / "tests/data/hosts"
GOOD = """\
id = "epyc-1"
kind = "ssh"
gives = ["amd", "svm", "npt"]
[ssh]
target = "root@epyc-1.lab"
"""


def host(tmp_path: Path, text: str = GOOD) -> HostSpec:
    """A host file, read."""
    path = tmp_path / "host.toml"
    path.write_text(text)
    return read_host(path)


def debian() -> str:
    """What a Debian 12 in QEMU said, with kvm_amd loaded."""
    return (DATA / "debian-12-svm.txt").read_text()


def test_a_machine_says_what_it_is() -> None:
    facts = read_facts(debian())
    assert facts.kernel == ("6.1.0-57-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-3 (2026-11-26)")
    assert facts.gives == ("amd", "svm", "npt")
    assert facts.modules == ["kvm_amd", "kvm", "irqbypass"]
    assert "kvm_amd nested 1" in facts.many["parameter"]


def test_its_cpus_are_its_own(tmp_path: Path) -> None:
    assert cpus_of(host(tmp_path)) is Cpus.OWN
    for name, cpus in (("qemu-svm", Cpus.EMULATED), ("bochs-vmx", Cpus.EMULATED), ("qemu-kvm-svm", Cpus.NESTED)):
        assert cpus_of(read_host(SHIPPED / f"hosts/{name}.toml")) is cpus


def test_this_very_machine_says_what_it_is() -> None:
    """The script needs nothing but a POSIX shell and what every system has."""
    done = subprocess.run(["sh", "-s", "--", "facts"], input=SCRIPT.read_bytes(), capture_output=True, timeout=60)
    facts = read_facts(done.stdout.decode())
    assert facts.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts["architecture"] == "x86_64"
    assert facts["cpus"].isdigit()


def test_a_greeting_is_no_fact() -> None:
    facts = read_facts("Welcome to epyc-1!\nuse=at your own risk\n" + debian())
    assert facts.kernel[0] == "6.1.0-57-amd64"


@pytest.mark.parametrize("text", ["", "This account is not available.\n", "release=6.1\n"])
def test_who_says_nothing_of_himself_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="does not say what it is"):
        read_facts(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("architecture=x86_64", "architecture=aarch64", "it is aarch64"),
        ("vendor=AuthenticAMD", "vendor=GenuineIntel", "its CPU is GenuineIntel, and its file gives amd"),
        (" svm ", " ", "its CPU shows no svm: is it switched off in the firmware"),
        ("free_mb=", "free_mb=7\nx=", "7 MB are free"),
        ("lockdown=none", "lockdown=integrity", r"locked down \(integrity\)"),
        ("signed_only=N", "signed_only=Y", "signed modules only"),
        ("kexec=/usr/sbin/kexec", "kexec=", "kexec is not installed there"),
        ("kexec_disabled=0", "kexec_disabled=1", "kexec is switched off there"),
        ("owner=", "guest=57 qemu\nowner=", r"virtual machines run there \(57 qemu\)"),
        ("owner=", "opened=57 qemu\nowner=", r"/dev/kvm is in use there \(57 qemu\)"),
    ],
)
def test_what_keeps_a_machine_from_its_work_is_said(tmp_path: Path, old: str, new: str, says: str) -> None:
    spec = host(tmp_path)
    assert not [*hindrances(read_facts(debian()), spec)]
    assert old in debian()
    found = [*hindrances(read_facts(debian().replace(old, new)), spec)]
    assert [bool(re.search(says, one)) for one in found] == [True], found


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("grub=/boot/grub", "grub=", "it has no /boot/grub/grub.cfg"),
        ("secure_boot=", "secure_boot=1", "GRUB refuses a kernel that nobody signed"),
        ("grub_custom=yes", "x=", "does not read custom.cfg"),
        ("grub_once=yes", "x=", "does not know next_entry"),
        ("grub_editenv=/usr/bin/grub-editenv", "grub_editenv=", "grub-editenv is not installed there"),
        ("grub_env=yes", "x=", "grub-editenv /boot/grub/grubenv create"),
        ("grub_next=", "grub_next=2", "told to boot '2' next, by somebody else"),
        ("boot_options=rw,", "boot_options=ro,", "/boot is mounted read only"),
        ("boot_fs=ext4", "boot_fs=btrfs", r"GRUB cannot write to its /boot \(btrfs on part\)"),
        ("boot_device=part", "boot_device=lvm", r"GRUB cannot write to its /boot \(ext4 on lvm\)"),
        ("boot_free_mb=", "boot_free_mb=7\nx=", "7 MB are free in /boot, and 64 are needed"),
    ],
)
def test_where_grub_would_not_boot_it_once_is_said(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Above all where GRUB could not forget: it would boot the kernel under test for ever."""
    spec = host(tmp_path, GOOD + 'kernel = "install"\n')
    assert not [*hindrances(read_facts(debian()), spec)]
    assert f"\n{old}" in debian()
    found = [*hindrances(read_facts(debian().replace(f"\n{old}", f"\n{new}")), spec)]
    assert [bool(re.search(says, one)) for one in found] == [True], found


def test_each_way_needs_what_it_needs(tmp_path: Path) -> None:
    """No kexec is no matter where GRUB boots it, and no GRUB none where kexec does; the other way is named."""
    no_kexec = debian().replace("kexec=/usr/sbin/kexec", "kexec=")
    no_grub = debian().replace("grub=/boot/grub", "grub=")
    assert no_kexec != debian() != no_grub
    assert not [*hindrances(read_facts(no_kexec), host(tmp_path, GOOD + 'kernel = "install"\n'))]
    assert not [*hindrances(read_facts(no_grub), host(tmp_path))]
    (said,) = hindrances(read_facts(no_kexec), host(tmp_path))
    assert said.endswith('; or say kernel = "install" in its file')
    (said,) = hindrances(read_facts(no_kexec.replace("grub=/boot/grub", "grub=")), host(tmp_path))
    assert said == "kexec is not installed there (Debian: kexec-tools)"


def test_a_word_with_blanks_is_one_for_grub() -> None:
    """It puts quotes around it itself, where the kernel takes them off: those in the middle it would mask."""
    words = ["root=/dev/sda2", 'dyndbg="file', "x", '+p"', "quiet", 'init="a"']
    assert arguments(words) == ["root=/dev/sda2", "dyndbg=file x +p", "quiet", 'init="a"']


def test_virtual_machines_may_be_ended_where_the_file_says_so(tmp_path: Path) -> None:
    spec = host(tmp_path, GOOD + 'virtual_machines = "end"\n')
    assert not [*hindrances(read_facts(debian() + "guest=57 qemu\nopened=57 qemu\n"), spec)]


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (
            "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
            "host-key",
        ),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "host-key"),
        ("root@h: Permission denied (publickey).", "refused"),
        ("ssh: connect to host h port 22: Connection refused", "unreachable"),
        ("ssh: Could not resolve hostname h: Name or service not known", "unreachable"),
        ("", "unreachable"),
    ],
)
def test_what_ssh_says_is_told_apart(said: str, trouble: str) -> None:
    assert trouble_in(said) == trouble
    error = UnreachableError("h", said)
    assert "\n" not in str(error)
    assert str(error).startswith("h: ")


def test_words_for_the_machine_reach_it_as_they_are(tmp_path: Path) -> None:
    """ssh joins its words with blanks for the shell at the other end."""
    ssh = host(tmp_path, GOOD + "sudo = true\n").ssh
    assert ssh is not None
    *_, target, remote = Client(ssh).argv("printf", "%s|", "a b", "$HOME", "it's")
    assert target == "root@epyc-1.lab"
    done = subprocess.run(["sh", "-c", remote], capture_output=True, text=True, timeout=10)
    assert done.stdout == "a b|$HOME|it's|"


@pytest.mark.parametrize("target", ["-oProxyCommand=x", "two words", ""])
def test_a_target_is_no_option(tmp_path: Path, target: str) -> None:
    with pytest.raises(UserError, match=r":5: ssh\.target"):
        host(tmp_path, GOOD.replace("root@epyc-1.lab", target))


@pytest.mark.parametrize("power", ["{}", '{ off = "x" }'])
def test_a_power_switch_goes_both_ways(tmp_path: Path, power: str) -> None:
    with pytest.raises(UserError, match="give cycle, or both off and on"):
        host(tmp_path, GOOD + f"power = {power}\n")


def test_a_kernel_without_an_initrd_finds_its_root_by_partition() -> None:
    words = "BOOT_IMAGE=/vmlinuz root=UUID=12-34 ro quiet initrd=\\x"
    disk = {"command_line": f"{words} mitigations=off", "root": "/dev/sda2"}
    assert own_words(words, Facts(disk)) == ["root=/dev/sda2", "ro", "quiet"], "not what an earlier boot was given"
    assert own_words(words, Facts(disk | {"root_partuuid": "ab-02"})) == ["root=PARTUUID=ab-02", "ro", "quiet"]


def test_of_a_log_only_the_last_step_counts(tmp_path: Path) -> None:
    """An oops of an earlier step was judged already; and what pstore adds to its lines is taken off."""
    console = io.BytesIO()
    spec = host(tmp_path)
    errand = Errand(
        host=spec,
        release="6",
        version="#1",
        archive="",
        command_line=(),
        own_words="",
        fresh=False,
        mark="m",
        hung_task_s=8,
    )
    text = (
        "evidence=/sys/fs/pstore/dmesg-ramoops-0:0a1b\nPanic#1 Part1\n<1>[    1.000000] BUG: an old one\n"
        "<5>[    2.000000] kvm-kbuild: step 7 begin\n<0>[    3.000000] Kernel panic - not syncing: a new one\n"
    )
    where = Bridge(errand, console).hand_over(text)
    assert where == "its kernel's last words are in /sys/fs/pstore/dmesg-ramoops-0"
    assert b"an old one" not in console.getvalue()
    assert b"Kernel panic - not syncing: a new one" in console.getvalue()


def test_pieces_of_a_panic_are_read_in_the_order_of_the_log() -> None:
    """fs/pstore/platform.c, pstore_dump(): EFI's and ERST's pieces are small, and the first one has the end."""
    text = "".join(
        f"evidence=/sys/fs/pstore/dmesg-efi-16900000{part:02}001:0a\nPanic#2 Part{part}\n{lines}\n"
        for part, lines in (
            (1, "<0>[    4.000000] Kernel panic - not syncing: x\n<0>[    4.100000] ---[ end Kernel panic"),
            (2, "<5>[    3.000000] kvm-kbuild: step 7 begin\n<1>[    3.900000] BUG: the reason"),
            (3, "<6>[    2.000000] long ago"),
        )
    )
    oops = "evidence=/sys/fs/pstore/dmesg-efi-1:0b\nOops#1 Part1\n<1>[    2.500000] BUG: an earlier one\n"
    said = [line.partition("] ")[2] for line in in_order(text + oops) if line.startswith("<")]
    assert said == [
        *("BUG: an earlier one", "long ago", "kvm-kbuild: step 7 begin", "BUG: the reason"),
        *("Kernel panic - not syncing: x", "---[ end Kernel panic"),
    ]
    whole = "evidence=/var/lib/systemd/pstore/1/dmesg.txt:0c\nwhole\n"
    assert [*in_order(whole + text)][-1] == "whole", "what is whole is read last"


def test_of_a_host_s_own_log_only_what_came_since_the_mark_counts() -> None:
    """A crash of days ago is nobody's FAIL, nor is a step of an earlier run."""
    old = "<1>[    1.0] BUG: old\n<5>[    2.0] kvm-kbuild: step 3 begin\n<1>[    3.0] BUG: an earlier run's"
    assert since("kvm-kbuild: r 1", old) == ""
    text = f"{old}\n<0>[    4.0] kvm-kbuild: r 1\n<1>[    5.0] BUG: new"
    assert since("kvm-kbuild: r 1", text) == "<1>[    5.0] BUG: new"
    flood = "\n".join(["<1>[    5.0] BUG: new"] * LOG_LINES)
    assert since("kvm-kbuild: r 1", flood) == flood


def test_silence_is_longer_than_ssh_needs_to_see_a_lost_connection(tmp_path: Path) -> None:
    assert ALIVE_S * (ALIVE_TIMES + 1) < MIN_SILENT_S
    with pytest.raises(UserError, match="silent_s: at least 20"):
        host(tmp_path, GOOD.replace("[ssh]", "limits = { silent_s = 10 }\n[ssh]"))


def test_the_bridge_says_in_one_line_why_it_could_not(tmp_path: Path) -> None:
    """A host that nobody reaches: its words are the last line, and the status is the host's failure."""
    spec = host(
        tmp_path, GOOD.replace("root@epyc-1.lab", "nobody.invalid").replace("[ssh]", "limits = { boot_s = 1 }\n[ssh]")
    )
    errand = tmp_path / "errand.json"
    (tmp_path / "files.tar").write_bytes(b"")
    asked = Errand(
        host=spec,
        release="6",
        version="#1",
        archive=str(tmp_path / "files.tar"),
        command_line=(),
        own_words="",
        fresh=False,
        mark="m",
        hung_task_s=8,
    )
    errand.write_bytes(msgspec.json.encode(asked))
    argv = [sys.executable, "-m", "kbuild.hosts.ssh.bridge", str(errand), "2", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=PROJECT, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "state booting"
    assert "nobody.invalid: did not come back within 1 s" in done.stdout.splitlines()[-1]
