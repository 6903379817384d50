"""Protects the host's reading of what a kernel under test sends: no line, whole or broken, in whatever pieces, may
be taken for something else, raise, or pile up; and a state's differences have names that are the same in every run.
"""

from __future__ import annotations

import errno
import json
import random
import re
import urllib.parse
from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.load import protocol
from kbuild.load.guests import SmokeKind
from kbuild.load.protocol import (
    Broken,
    Bye,
    Died,
    Hello,
    Items,
    LineReader,
    LogRecord,
    Lost,
    Message,
    Refused,
    Result,
    Verb,
)
from kbuild.load.state import parse_state, told_difference

EXAMPLES: list[tuple[bytes, Message]] = [
    (
        b'{"ev":"hello","protocol":1,"kernel":"6.1.192","vendor":"GenuineIntel","flags":["vmx","ept"]}',
        Hello(protocol=1, kernel="6.1.192", vendor="GenuineIntel", flags=("vmx", "ept")),
    ),
    (
        b'{"ev":"log","id":7,"seq":172,"us":905,"level":6,"caller":"T23","text":"a \\u0022b\\u0022 \\u00ff\\u000a"}',
        LogRecord(id=7, seq=172, us=905, level=6, caller="T23", text='a "b" \xff\n'),
    ),
    (b'{"ev":"lost","id":7,"records":3}', Lost(id=7, records=3)),
    (b'{"ev":"items","id":1,"what":"taint","items":["0"]}', Items(id=1, what="taint", items=("0",))),
    (
        b'{"ev":"result","id":9,"exit_reason":5,"output":18446744073709551615,"us":7,"errno":0}',
        Result(id=9, exit_reason=5, output=2**64 - 1, us=7, errno=0),
    ),
    (b'{"ev":"died","id":21,"signal":9}', Died(id=21, signal=9)),
    (b'{"ev":"refused","id":0,"why":"no such verb"}', Refused(id=0, why="no such verb")),
    (b'{"ev":"bye"}', Bye()),
]


def read(data: bytes) -> list[Message | Broken]:
    reader = LineReader()
    return [*reader.feed(data), *reader.finish()]


@pytest.mark.parametrize(("line", "message"), EXAMPLES)
def test_each_message_is_read(line: bytes, message: Message) -> None:
    assert read(line + b"\n") == [message]


def test_pieces_do_not_matter() -> None:
    data = b"".join(line + b"\n" for line, _ in EXAMPLES) * 3
    rng = random.Random(1)
    for _ in range(50):
        reader = LineReader()
        got: list[Message | Broken] = []
        position = 0
        while position < len(data):
            size = rng.choice((1, 2, 7, 100, 1000))
            got += reader.feed(data[position : position + size])
            position += size
        assert got == [message for _, message in EXAMPLES] * 3
        assert reader.finish() == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b'{"ev":"bye"', "not JSON"),
        (b"[]", "not a message"),
        (b'{"ev":"reboot"}', "not a message"),
        (b'{"ev":"bye","now":1}', "not a message"),
        (b'{"ev":"died","id":-1,"signal":9}', "not a message"),
        (b'{"ev":"died","id":1.5,"signal":9}', "not a message"),
        (b'{"ev":"died","id":123456789012345678901234567890,"signal":9}', "not a message"),
        (b'{"ev":"result","id":1,"errno":5000,"us":1}', "not a message"),
        (b'{"ev":"log","id":1,"seq":1,"us":1,"level":8,"text":""}', "not a message"),
        (b'{"ev":"bye"}\r', "not the contract's ASCII"),
        (b'{"ev":"bye"}\0', "not the contract's ASCII"),
        (b'{"ev":"refused","id":0,"why":"\xc3\xa4"}', "not the contract's ASCII"),
        (b'{"ev":"refused","id":0,"why":"\\ud800"}', "not the contract's ASCII"),
        (b'{"ev":"refused","id":0,"why":"\\n"}', "not the contract's ASCII"),
        (b'{"x":' + b"[" * 4000, "not JSON"),
    ],
)
def test_anything_else_is_broken_and_the_next_line_is_read(line: bytes, why: str) -> None:
    broken, following = read(line + b'\n{"ev":"bye"}\n')
    assert isinstance(broken, Broken)
    assert why in broken.why
    assert broken.raw == line[: protocol.BROKEN_BYTES]
    assert following == Bye()


def test_a_line_that_is_cut_by_the_end_is_broken() -> None:
    assert read(b'{"ev":"bye"}\n{"ev":"by') == [Bye(), Broken(b'{"ev":"by', "cut")]


@pytest.mark.parametrize("before", [b"x", b'{"ev":"bye"} ', b'{"ev":"log","id":1,"te', b"\0\xff", b"x" * 10_000])
def test_a_message_is_whole_whatever_stands_before_it_on_its_line(before: bytes) -> None:
    broken, following = read(before + b'{"ev":"bye"}\n')
    assert isinstance(broken, Broken)
    assert broken.raw == before[: protocol.BROKEN_BYTES]
    assert following == Bye()
    halves = LineReader()
    data = before + b'{"ev":"bye"}\n'
    assert [message for n in range(len(data)) for message in halves.feed(data[n : n + 1])][1:] == [Bye()]


def test_a_line_that_never_ends_takes_no_memory_and_is_told_once() -> None:
    reader = LineReader()
    got: list[Message | Broken] = []
    for _ in range(1000):
        got += reader.feed(b"x" * 10_000)
        assert len(reader._pending) <= protocol.LINE_BYTES
    assert [type(message) for message in got] == [Broken]
    assert reader.feed(b'end\n{"ev":"bye"}\n') == [Bye()]


def test_damaged_lines_raise_nothing() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        data = bytearray(b"".join(line + b"\n" for line, _ in EXAMPLES))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place : place + rng.randrange(40)]
                case _:
                    data[place:place] = rng.randbytes(rng.randrange(20))
        for message in read(bytes(data)):
            if isinstance(message, LogRecord):
                message.text.encode("latin-1")


def test_commands_are_escaped_as_the_contract_says() -> None:
    line = protocol.encode(12, Verb.LOAD, "kvm.ko", "how=a b%\tä")
    assert re.fullmatch(rb"[0-9a-f]{8} 12 load kvm\.ko [!-~]+\n", line)
    assert urllib.parse.unquote(line.split()[4].decode()) == "how=a b%\tä"
    value = 0x811C9DC5
    for byte in b"1 poweroff":
        value = (value ^ byte) * 0x01000193 % 2**32
    assert protocol.encode(1, Verb.POWEROFF) == f"{value:08x} 1 poweroff\n".encode()


@pytest.mark.parametrize("argument", ["", "a\0b", "x" * protocol.COMMAND_BYTES, "ä" * 200])
def test_what_no_command_can_carry_is_the_users_error(argument: str) -> None:
    with pytest.raises(UserError, match="load: "):
        protocol.encode(1, Verb.LOAD, argument)


def test_errors_have_the_names_that_the_kernel_uses() -> None:
    assert protocol.errno_name(0) is None
    assert protocol.errno_name(errno.EEXIST) == "EEXIST"
    # kernel/module/main.c, delete_module(2), and svm.c, vmx.c write these.
    assert protocol.errno_name(errno.EAGAIN) == "EWOULDBLOCK"
    assert protocol.errno_name(errno.ENOTSUP) == "EOPNOTSUPP"
    for number in errno.errorcode:
        name = protocol.errno_name(number)
        assert name is not None
        assert protocol.errno_number(name) == number
    assert protocol.errno_number("EAGAIN") == protocol.errno_number("EWOULDBLOCK")
    with pytest.raises(UserError, match="EEXISTS"):
        protocol.errno_number("EEXISTS")
    assert protocol.errno_name(3999) == "errno 3999"


def test_errno_names_agree_with_the_kernels_headers(kernel_source: Path) -> None:
    for header in ("uapi/asm-generic/errno-base.h", "uapi/asm-generic/errno.h", "linux/errno.h"):
        defined = re.findall(r"#define\s+(E\w+)\s+(\d+)\s", (kernel_source / "include" / header).read_text())
        assert defined
        for name, number in defined:
            assert protocol.errno_number(name) == int(number)
            assert protocol.errno_number(protocol.errno_name(int(number)) or "") == int(number)


def items(**groups: list[str]) -> list[Items]:
    return [Items(id=1, what=what, items=tuple(entries)) for what, entries in groups.items()]


CLEAN = {"slab": ["dentry", "kmalloc-8"], "debugfs": ["acpi", "bdi"], "misc": ["vga_arbiter"], "taint": ["0"]}


def test_a_state_is_the_same_in_any_order_and_grouping() -> None:
    first = parse_state(items(**CLEAN))
    second = parse_state(
        [
            *items(taint=["0"], slab=["kmalloc-8"]),
            *items(slab=["dentry"], debugfs=["bdi", "acpi"], misc=["vga_arbiter"]),
        ]
    )
    assert first == second
    assert first.difference(second) == []


def test_differences_name_what_was_left_and_not_what_lies_below_it() -> None:
    before = parse_state(items(**CLEAN, modules=["irqbypass 16384 0 - Live"], sysfs=["irqbypass live"]))
    after = parse_state(
        items(
            slab=["dentry", "kvm_vcpu"],
            debugfs=["acpi", "bdi", "kvm", "kvm/exits", "kvm/4711-5"],
            misc=["vga_arbiter", "kvm"],
            dev=["/dev/kvm"],
            taint=["512"],
            modules=["irqbypass 16384 1 kvm, Live", "kvm 667648 1 - Loading"],
            sysfs=["irqbypass live", "kvm coming"],
        )
    )
    assert before.difference(after) == [
        "changed/modules/irqbypass/holders",
        "changed/modules/irqbypass/refs",
        "debugfs/kvm",
        "dev/kvm",
        "gone/slab/kmalloc-8",
        "misc/kvm",
        "modules/kvm",
        "slab/kvm_vcpu",
        "sysfs/kvm",
        "taint/W",
    ]


def test_what_is_counted_is_left_when_there_is_more_of_it() -> None:
    before = parse_state(items(vmalloc=["load_module 8192 9", "dt_init 4096 2"], thread=["kdt", "kdt"]))
    after = parse_state(items(vmalloc=["load_module 8192 10", "dt_init 4096 1"], thread=["kdt", "kdt", "kdt"]))
    assert before.difference(after) == ["gone/vmalloc/dt_init/4096", "thread/kdt", "vmalloc/load_module/8192"]


def test_sizes_parameters_and_symbols_belong_to_what_they_are_of() -> None:
    detail = items(
        slab=["a b"], size=["a b 96"], parameter=["kvm.tdp_mmu Y", "kvm.empty "], kallsyms=["kvm 1535"], cpuhp=["x:y"]
    )
    assert parse_state(detail).facts == {
        "cpuhp/x:y": "",
        "kallsyms/kvm": "1535",
        "modules/kvm/parameters/empty": "",
        "modules/kvm/parameters/tdp_mmu": "Y",
        "slab/a b": "",
        "slab/a b/size": "96",
    }


def test_a_look_tells_what_is_new_gone_and_other_with_values() -> None:
    before = parse_state(items(slab=["old"], size=["old 8"], parameter=["kvm.npt Y"], dev=["/dev/kvm"]))
    after = parse_state(items(slab=["new"], size=["new 96"], parameter=["kvm.npt N"], dev=["/dev/kvm"]))
    assert told_difference(before, after) == [
        "* modules/kvm/parameters/npt = Y -> N",
        "+ slab/new",
        "+ slab/new/size = 96",
        "- slab/old",
    ]
    assert told_difference(after, after) == []


def test_a_virtual_machine_left_in_debugfs_has_the_same_name_in_every_run() -> None:
    before = parse_state(items(debugfs=["kvm", "kvm/exits"]))
    for name in ("kvm/31-4", "kvm/4711-12"):
        assert before.difference(parse_state(items(debugfs=["kvm", "kvm/exits", name]))) == ["debugfs/kvm/PID-FD"]


def test_taint_counts_for_what_a_module_did_and_not_for_what_it_is() -> None:
    clean = parse_state(items(taint=["0"]))
    out_of_tree_unsigned, soft_lockup = 1 << 12 | 1 << 13, 1 << 14
    assert clean.difference(parse_state(items(taint=[str(out_of_tree_unsigned)]))) == []
    assert clean.difference(parse_state(items(taint=[str(soft_lockup)]))) == ["taint/L"]


def test_what_was_not_looked_at_does_not_look_clean() -> None:
    before = parse_state(items(**CLEAN))
    after = parse_state(items(**{**CLEAN, "slab": [], "absent": ["slab"]}))
    assert after.absent == {"slab"}
    assert "absent/slab" in before.difference(after)


def test_odd_items_are_kept_and_raise_nothing() -> None:
    odd = items(modules=["", "a", "a b c d e f g"], sysfs=[""], taint=["x", "", "9" * 400], debugfs=[""], what=["?"])
    state = parse_state(odd)
    assert state.facts["taint/x"] == ""
    assert state.difference(parse_state([])) != []


def test_the_hash_is_fnv_1a() -> None:
    # http://www.isthe.com/chongo/tech/comp/fnv/: the 64-bit offset basis is the hash of nothing.
    assert parse_state([]).hash == "cbf29ce484222325"
    state = parse_state(items(a=["\xff", "b"]))
    value = 0xCBF29CE484222325
    for byte in b"a/b\na/\xff\n":
        value = (value ^ byte) * 0x100000001B3 % 2**64
    assert state.hash == f"{value:016x}"


def test_the_contract_names_every_verb_message_and_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
    for verb in Verb:
        assert f"| `{verb}" in text
    for line, _ in EXAMPLES:
        assert f"| `{json.loads(line)['ev']}` |" in text
    for kind in SmokeKind:
        assert f"`{kind}`" in text
