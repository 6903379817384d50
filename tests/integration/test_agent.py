"""Protects the agent itself: it compiles cleanly, refuses nonsense, loads and unloads real KVM modules in real
emulators, runs virtual machines with each kind of paging, survives an oops and a flood, and tells what is left behind.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbuild.errors import HarnessError
from kbuild.hosts.base import BootImage
from kbuild.hosts.disk import SECTOR, fill_disk, make_disk
from kbuild.hosts.initramfs import write_initramfs
from kbuild.hosts.spec import BochsSettings, Capability, HostSpec, QemuSettings, start
from kbuild.load import agent
from kbuild.load.agent import build_agent
from kbuild.load.guests import SmokeKind, expected_output
from kbuild.load.protocol import Broken, Died, LineReader, Message, Refused, Result, Verb, encode, errno_name
from kbuild.load.session import End, Reply, Session
from kbuild.load.state import State, parse_state

MODULES = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
COMMAND_LINE = ("quiet", "mitigations=off", "nokaslr", "panic=-1", "slab_nomerge", "printk.devkmsg=on")
MISBEHAVE = Path(__file__).parents[1] / "data" / "misbehave"


# Building, and what needs no emulator


@pytest.mark.parametrize("using", agent.COMPILERS, ids=lambda using: using[0])
def test_it_compiles_without_a_warning(using: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which(using[0]):
        pytest.skip(f"{using[0]} is not installed")
    monkeypatch.setattr(agent, "FLAGS", (*agent.FLAGS, "-Werror"))
    assert build_agent(tmp_path, using).stat().st_mode & 0o111


def test_it_comes_out_the_same_everywhere_and_is_built_once(tmp_path: Path) -> None:
    first, second = build_agent(tmp_path / "one"), build_agent(tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    assert str(agent.SOURCES).encode() not in first.read_bytes()
    before = first.stat().st_mtime_ns
    assert build_agent(tmp_path / "one").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "one").iterdir()] == [first.name]


def test_what_the_compiler_does_not_like_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"^the agent does not compile: .*no-such-option") as caught:
        build_agent(tmp_path, ("gcc", "--no-such-option"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


Talk = Callable[[bytes], list[Message | Broken]]


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """Gives the agent some input, and what it answers after its hello."""
    program = build_agent(tmp_path_factory.mktemp("agent"))

    def call(data: bytes) -> list[Message | Broken]:
        done = subprocess.run([program, "--stdio"], input=data, capture_output=True, timeout=30, check=True)
        return LineReader().feed(done.stdout)[1:]

    return call


def checked(command: bytes) -> bytes:
    """A command that arrived as it was sent, whatever it says."""
    value = 0x811C9DC5
    for byte in command:
        value = (value ^ byte) * 0x01000193 % 2**32
    return b"%08x %s\n" % (value, command)


@pytest.mark.parametrize(
    ("line", "number", "why"),
    [
        (b"", 0, "no number in front"),
        (b"state", 0, "no number in front"),
        (b"-1 state", 0, "no number in front"),
        (b"99999999999999999999 state", 0, "no number in front"),
        (b"3", 0, "no number in front"),
        (b"3 ", 3, "no such verb"),
        (b"3 reboot", 3, "no such verb"),
        (b"3 STATE", 3, "no such verb"),
        (b"3 load", 3, "not the arguments of this verb"),
        (b"3 load  kvm.ko", 3, "an empty argument"),
        (b"3 load kvm.ko ", 3, "an empty argument"),
        (b"3 load ../kvm.ko", 3, "not a plain name"),
        (b"3 load %2e%2e%2fkvm.ko", 3, "not a plain name"),
        (b"3 load kvm.ko%0", 3, "a % without two hexadecimal digits, or %00"),
        (b"3 load kvm.ko%00", 3, "a % without two hexadecimal digits, or %00"),
        (b"3 load" + b" a" * 65, 3, "too many arguments"),
        (b"3 param kvm", 3, "not the arguments of this verb"),
        (b"3 smoke vm86-mode 1", 3, "no such kind of guest"),
        (b"3 smoke real-mode 18446744073709551616", 3, "the input is no decimal 64-bit number"),
        (b"3 smoke real-mode -1", 3, "the input is no decimal 64-bit number"),
        (b"3 trace /etc/passwd x", 3, "not a file of tracefs"),
        (b"3 trace per_cpu/../../x", 3, "not a file of tracefs"),
        (b"3 cpu off 1", 3, "neither online nor offline"),
        (b"3 cpu offline ../1", 3, "not the number of a processor"),
        (b"3 cpu offline 1024", 3, "not the number of a processor"),
        (b"3 on 1 unload ../kvm", 3, "not a plain name"),
        (b"3 on one unload kvm", 3, "not the number of a processor"),
        (b"3 on 1 poweroff", 3, "no verb inside another one"),
        (b"3 on 1 on 1 unload kvm", 3, "no verb inside another one"),
        (b"3 together 0 unload kvm ; 1 unload ../kvm", 3, "not a plain name"),
        (b"3 together 0 unload kvm ; ; 1", 3, "not two to four commands, each with its processor, parted by ;"),
        (b"3 together 0 rearm 1 rearm x", 3, "not two to four commands, each with its processor, parted by ;"),
        (b"3 suspend disk", 3, "no level of suspend"),
        (b"3 traced ../x 0", 3, "not a file of tracefs"),
        (b"3 traced trace", 3, "not the arguments of this verb"),
        (b"3 sections kvm/x", 3, "not a plain name"),
        (b"3 load \xff", 0, "a byte that is not printable ASCII"),
        (b"3 load \1", 0, "a byte that is not printable ASCII"),
    ],
)
def test_nonsense_is_refused_and_nothing_done(talk: Talk, line: bytes, number: int, why: str) -> None:
    # A second line shows that the first one has not upset it. Both are refused: nothing is done to this machine.
    assert talk(checked(line) + checked(b"4 nonsense")) == [
        Refused(id=number, why=why),
        Refused(id=4, why="no such verb"),
    ]


def test_drives_of_a_machine_that_is_not_its_own_are_left_alone(talk: Talk) -> None:
    (answer,) = talk(checked(b"3 fetch"))
    assert isinstance(answer, Result)
    assert errno_name(answer.errno) == "EPERM"


@pytest.mark.parametrize("words", [(Verb.SUSPEND, "core"), (Verb.LOUD,)], ids=["sleep", "console"])
def test_a_machine_that_is_not_its_own_is_left_as_it_is(talk: Talk, words: tuple[Verb, *tuple[str, ...]]) -> None:
    (result,) = talk(encode(1, *words))
    assert isinstance(result, Result)
    assert errno_name(result.errno) == "EPERM"


def test_several_commands_at_once(talk: Talk) -> None:
    (result,) = talk(encode(1, Verb.TOGETHER, "0", "load", "none.ko", ";", "0", "param", "no_such", "x"))
    assert isinstance(result, Result)
    assert result.errno == 0
    assert [part.split(" ")[0] for part in result.parts] == ["2", "2"], "ENOENT, each for itself"
    (result,) = talk(encode(1, Verb.ON, "1000", "param", "no_such", "x"))
    assert isinstance(result, Result)
    assert (errno_name(result.errno), result.where) == ("EINVAL", "sched_setaffinity")


def test_a_command_that_lost_bytes_on_its_way_is_refused_and_never_done(talk: Talk) -> None:
    # Not one of these may be done, for it would be on this machine: what they name does not exist.
    whole = encode(3, Verb.UNLOAD, "no_such_module")
    for place in range(len(whole) - 1):
        for lost in (1, 2, 7):
            damaged = whole[:place] + whole[min(place + lost, len(whole) - 1) :]
            assert talk(damaged) == [Refused(id=0, why="damaged")]
    assert talk(whole.replace(b"no", b"\0o")) == [Refused(id=0, why="damaged")]
    # What a serial port puts between the bytes, and between the lines, is no loss.
    assert talk(checked(b"4 nonsense").replace(b"n", b"\0n\0")) == [Refused(id=4, why="no such verb")]
    assert talk(b"x" * 5000 + b"\n") == [Refused(id=0, why="longer than 1024 bytes")]


def test_a_command_that_lost_its_end_is_refused_before_the_next_comes(tmp_path: Path) -> None:
    argv = (str(build_agent(tmp_path)), "--stdio")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode(3, Verb.STATE)[:-1])
        reader = LineReader()
        _hello, refused = *reader.feed(process.stdout.readline()), *reader.feed(process.stdout.readline())
        assert refused == Refused(id=0, why="cut")


# In emulators


@dataclass(frozen=True)
class Vendor:
    file: str
    name: str
    paging: str
    """The parameter that turns two-dimensional paging off."""


INTEL = Vendor("kvm-intel.ko", "kvm_intel", "ept")
AMD = Vendor("kvm-amd.ko", "kvm_amd", "npt")


def bochs(model: str, *gives: Capability) -> HostSpec:
    return HostSpec(id=model, kind="bochs", gives=("intel", "vmx", *gives), bochs=BochsSettings(model=model))


QEMU = HostSpec(id="qemu", kind="qemu", gives=("amd", "svm", "npt"), qemu=QemuSettings(cpu="EPYC,+svm"))
HOSTS = [
    (QEMU, AMD),
    (bochs("corei7_haswell_4770", "ept", "unrestricted-guest"), INTEL),
    (bochs("corei5_lynnfield_750", "ept"), INTEL),
    (bochs("core2_penryn_t9600"), INTEL),
]


@contextmanager
def booted(spec: HostSpec, folder: Path, build: Path, *modules: Path, asking: str = "") -> Iterator[Session]:
    files: dict[str, Path | bytes] = {"/init": build_agent(folder)}
    files |= {f"/modules/{path.name}": path for path in (*(build / name for name in MODULES), *modules)}
    write_initramfs(folder / "initramfs", files)
    image = BootImage(build / "arch/x86/boot/bzImage", folder / "initramfs", (*COMMAND_LINE, *asking.split()))
    with start(spec, image, folder / "machine") as machine:
        session = Session(machine, spec.limits, lambda: False)
        boot = session.boot()
        assert session.hello is not None, boot
        yield session


def result(reply: Reply) -> Result:
    assert isinstance(reply.answer, Result), reply
    assert not reply.broken
    return reply.answer


def do(session: Session, verb: Verb, *arguments: str) -> str | None:
    return errno_name(result(session.command(verb, *arguments)).errno)


def texts(reply: Reply) -> list[str]:
    return [record.text for record in reply.log if record.id == reply.number]


def state(session: Session) -> State:
    reply = session.command(Verb.STATE)
    parsed = parse_state(reply.items)
    assert result(reply).hash == parsed.hash
    return parsed


def is_same(session: Session, as_before: State) -> bool:
    reply = session.command(Verb.STATE, as_before.hash)
    same = result(reply).same
    assert same is (not reply.items)
    return bool(same)


def run_guests(session: Session) -> None:
    for kind in SmokeKind:
        value = random.getrandbits(64)
        answer = result(session.command(Verb.SMOKE, kind, str(value)))
        assert (answer.errno, answer.where) == (0, None), answer
        assert answer.output == expected_output(kind, value)


@pytest.mark.kernel
@pytest.mark.parametrize(("spec", "vendor"), HOSTS[:2], ids=lambda value: getattr(value, "id", ""))
def test_modules_come_after_the_boot(spec: HostSpec, vendor: Vendor, kernel_build: Path, tmp_path: Path) -> None:
    write_initramfs(tmp_path / "initramfs", {"init": build_agent(tmp_path)})
    disk = tmp_path / "a disk, to be filled later"
    make_disk(disk)
    image = BootImage(kernel_build / "arch/x86/boot/bzImage", tmp_path / "initramfs", COMMAND_LINE, disk)
    with start(spec, image, tmp_path / "machine") as machine:
        session = Session(machine, spec.limits, lambda: False)
        session.boot()
        assert do(session, Verb.FETCH) == "ENOENT", "nothing is on it yet"
        machine.pause()
        fill_disk(disk, {path.name: path.read_bytes() for path in (kernel_build / name for name in MODULES)})
        machine.resume()
        assert do(session, Verb.FETCH) is None
        for file in ("irqbypass.ko", "kvm.ko", vendor.file):
            assert do(session, Verb.LOAD, file) is None
        run_guests(session)
        with disk.open("r+b") as content:
            content.seek(8 * SECTOR + 1)
            content.write(b"?")
        assert do(session, Verb.FETCH) == "EBADMSG", "not what was put there"
        assert session.power_off().end is End.EXIT


@pytest.mark.kernel
@pytest.mark.parametrize(("spec", "vendor"), HOSTS, ids=lambda value: value.id if isinstance(value, HostSpec) else "")
def test_a_life_of_the_modules(spec: HostSpec, vendor: Vendor, kernel_build: Path, tmp_path: Path) -> None:
    other = AMD if vendor is INTEL else INTEL
    with booted(spec, tmp_path, kernel_build) as session:
        assert session.hello is not None
        assert set(session.hello.flags) == set(spec.gives) - {"intel", "amd"}
        assert session.hello.vendor == ("GenuineIntel" if vendor is INTEL else "AuthenticAMD")

        clean = state(session)
        assert clean.absent == {"cpuhp"}, "kernel/cpu.c, cpuhp_sysfs_init(): with HOTPLUG_CPU, which needs SMP"
        no_kvm = result(session.command(Verb.SMOKE, SmokeKind.REAL_MODE, "1"))
        assert (errno_name(no_kvm.errno), no_kvm.where) == ("ENOENT", "open")
        assert do(session, Verb.LOAD, "no-such.ko") == "ENOENT"
        assert do(session, Verb.LOAD, "kvm.ko") == "ENOENT"  # unknown symbols: irqbypass is not there
        assert do(session, Verb.LOAD, "irqbypass.ko") is None
        assert do(session, Verb.LOAD, "kvm.ko") is None
        common = state(session)

        # svm.c and vmx.c: is_disabled, cpu_has_kvm_support.
        refused = session.command(Verb.LOAD, other.file)
        assert errno_name(result(refused).errno) == "EOPNOTSUPP"
        assert any(f"no hardware support for '{other.name}'" in text for text in texts(refused))

        assert do(session, Verb.LOAD, vendor.file) is None
        assert do(session, Verb.LOAD, vendor.file) == "EEXIST"
        assert do(session, Verb.LOAD, other.file) == "EEXIST"  # x86.c, kvm_x86_vendor_init(): one is loaded
        new = common.difference(state(session))
        assert {"dev/kvm", "misc/kvm", "slab/kvm_vcpu", "debugfs/kvm", f"modules/{vendor.name}"} <= set(new)
        assert do(session, Verb.PARAM, vendor.name, "no-such") == "ENOENT"
        paging = result(session.command(Verb.PARAM, vendor.name, vendor.paging)).value
        assert paging == ("Y" if vendor.paging in spec.gives else "N")
        run_guests(session)

        held = result(session.command(Verb.UNLOAD, "kvm"))
        assert (errno_name(held.errno), held.refs, held.holders) == ("EWOULDBLOCK", 1, (vendor.name,))
        assert do(session, Verb.UNLOAD, vendor.name) is None
        assert is_same(session, common)

        assert do(session, Verb.LOAD, vendor.file, f"{vendor.paging}=0") is None
        assert result(session.command(Verb.PARAM, vendor.name, vendor.paging)).value == "N"
        run_guests(session)
        for name in (vendor.name, "kvm", "irqbypass"):
            assert do(session, Verb.UNLOAD, name) is None
        assert do(session, Verb.UNLOAD, "kvm") == "ENOENT"
        assert is_same(session, clean)
        session.power_off()
        assert session.said_bye


@pytest.fixture(scope="session")
def misbehave(kernel_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module built against the kernel under test, with the kernel's own way for such modules."""
    folder = tmp_path_factory.mktemp("misbehave") / "m"
    shutil.copytree(MISBEHAVE, folder)
    subprocess.run(["make", "-s", "-C", kernel_build, f"M={folder}", "modules"], check=True, timeout=120)
    return folder / "misbehave.ko"


@pytest.mark.kernel
def test_a_module_that_misbehaves(kernel_build: Path, misbehave: Path, tmp_path: Path) -> None:
    with booted(QEMU, tmp_path, kernel_build, misbehave) as session:
        clean = state(session)

        strange = session.command(Verb.LOAD, misbehave.name, "how=bytes")
        assert 'tab\t escape\x1b quote" backslash\\ \xff two\nlines' in texts(strange)
        assert do(session, Verb.UNLOAD, "misbehave") is None
        # Its own kind of taint is left, and says nothing about what it did.
        assert not is_same(session, clean)
        assert clean.difference(state(session)) == []

        # A value with a blank and a %, through our escaping and the kernel's quoting.
        session.command(Verb.LOAD, misbehave.name, "how=a b%", "count=1")
        assert result(session.command(Verb.PARAM, "misbehave", "how")).value == "a b%"
        assert do(session, Verb.UNLOAD, "misbehave") is None

        # A line that the kernel keeps open for pr_cont() still belongs to its own command.
        assert "no newline" in texts(session.command(Verb.LOAD, misbehave.name, "how=unended"))
        assert do(session, Verb.UNLOAD, "misbehave") is None

        flood = session.command(Verb.LOAD, misbehave.name, "count=20000")
        assert len(flood.log) <= 5000
        # Each record is sent or counted: the flood and its first line.
        assert len(flood.log) + flood.lost == 20001
        assert do(session, Verb.UNLOAD, "misbehave") is None

        assert do(session, Verb.LOAD, misbehave.name, "how=leak") is None
        assert do(session, Verb.UNLOAD, "misbehave") is None
        assert clean.difference(state(session)) == ["debugfs/misbehave"]

        # `quiet` keeps what it says from the console, until that is to have all.
        said: dict[str, bool] = {}
        for how in ("quiet", "loud"):
            replies = [session.command(Verb.LOUD)] if how == "loud" else []
            replies += [session.command(Verb.LOAD, misbehave.name, f"how={how}")]
            replies += [session.command(Verb.UNLOAD, "misbehave"), session.command(Verb.MODULES)]
            assert [result(reply).errno for reply in replies] == [0] * len(replies)
            said[how] = any(f"how=[{how}]" in record.text for reply in replies for record in reply.console.records)
        assert said == {"quiet": False, "loud": True}

        oops = session.command(Verb.LOAD, misbehave.name, "how=oops")
        assert isinstance(oops.answer, Died)
        assert oops.answer.signal != 0
        assert any(text.startswith("BUG: kernel NULL pointer dereference") for text in texts(oops))
        assert any("end trace" in text for text in texts(oops))
        # The agent goes on, and the kernel still has the dead module.
        assert {"taint/D", "modules/misbehave"} <= set(clean.difference(state(session)))
        assert do(session, Verb.LOAD, "irqbypass.ko") is None
        session.power_off()
        assert session.said_bye


@pytest.mark.kernel
def test_what_a_kernel_does_not_show_is_told(kernel_build: Path, tmp_path: Path) -> None:
    with booted(QEMU, tmp_path, kernel_build, asking="debugfs=off") as session:
        seen = state(session)
        # kernel/cpu.c: the states are shown with CONFIG_HOTPLUG_CPU, which a kernel for one CPU does not have.
        config = (kernel_build / ".config").read_text().splitlines()
        assert seen.absent == {"debugfs"} | ({"cpuhp"} if "CONFIG_HOTPLUG_CPU=y" not in config else set())
        assert not any(fact.startswith("debugfs/") for fact in seen.facts)
        assert do(session, Verb.REARM) == "ENOENT"
        assert is_same(session, seen)
