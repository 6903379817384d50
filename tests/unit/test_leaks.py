"""Protects what is read of the kernel's search for lost memory: whose it was, under a name that no run changes."""

from __future__ import annotations

from kbuild.load.leaks import GONE, findings_of_leaks, read_leaks

# mm/kmemleak.c, print_unreferenced(), of 6.1; the module of the last two is gone.
OLD = """\
unreferenced object 0xffff888003a1c0c0 (size 64):
  comm "init", pid 23, jiffies 4294669012
  hex dump (first 32 bytes):
    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  kkkkkkkkkkkkkkkk
  backtrace:
    [<0000000058ea2f0b>] kmalloc_trace+0x1b/0x90
    [<00000000aa7d3d7a>] 0xffffffffa0005012
    [<000000003e5b5b57>] do_one_initcall+0x4a/0x170
unreferenced object 0xffff888003a1c100 (size 32):
  comm "init", pid 25, jiffies 4294669112
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace:
    [<0000000058ea2f0b>] kmalloc_trace+0x1b/0x90
    [<00000000aa7d3d7a>] 0xffffffffa0005012
""".splitlines()
# Of 7.2, with the module still there, and one that the kernel itself lost.
NEW = """\
unreferenced object 0xffff888003a1c0c0 (size 192):
  comm "init", pid 23, jiffies 4294669012
  hex dump (first 32 bytes):
    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  kkkkkkkkkkkkkkkk
  backtrace (crc 2bbf4a5c):
    __kmalloc_cache_noprof+0x2a1/0x360
    kvm_take.constprop.0+0x12/0x40 [kvm]
    vt_init+0x30/0x200 [kvm_intel]
    do_one_initcall+0x4a/0x170
unreferenced object 0xffff888003a1c0c0 (size 8):
  comm "swapper/0", pid 1, jiffies 4294667296
  backtrace (crc 0):
    __kmalloc_noprof+0x2a1/0x360
    do_one_initcall+0x4a/0x170
""".splitlines()
# The same of memory that each CPU has.
PERCPU = """\
unreferenced object (percpu) 0x607b97e9cab8 (size 16):
  comm "init", pid 23, jiffies 4294669012
  hex dump (first 16 bytes on cpu 0):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    pcpu_alloc_noprof+0x4c6/0x800
    kvm_take+0x12/0x40 [kvm]
""".splitlines()


def place(address: int) -> list[tuple[str, str]]:
    return [("lose.constprop.0", "dt_lose")] if address == 0xFFFFFFFFA0005012 else []


def test_what_is_gone_is_named_by_where_it_was() -> None:
    leaks = read_leaks(OLD, place)
    assert [(leak.size, leak.function, leak.module) for leak in leaks] == [
        (64, "lose", "dt_lose"),
        (32, "lose", "dt_lose"),
    ]
    (finding,) = findings_of_leaks(leaks, "o")
    assert finding.id == "load:leak:dt_lose/lose:o"
    assert finding.message == "memory that lose() of dt_lose asked for is lost: 2 times, 96 bytes"
    assert "    lose() [dt_lose]" in finding.evidence


def test_what_a_module_that_is_there_lost_is_its_innermost_functions() -> None:
    leaks = read_leaks(NEW, place)
    assert [(leak.function, leak.module) for leak in leaks] == [("kvm_take", "kvm"), (None, None)]
    (finding,) = findings_of_leaks(leaks, "o")
    assert (finding.id, finding.module) == ("load:leak:kvm/kvm_take:o", "kvm")


def test_memory_of_each_cpu_can_be_lost_too() -> None:
    assert [(leak.size, leak.function, leak.module) for leak in read_leaks(PERCPU, place)] == [(16, "kvm_take", "kvm")]
    assert len(read_leaks([*NEW, *PERCPU], place)) == 3, "it is no evidence of the one before"


def test_a_module_whose_place_nobody_knows_is_told_all_the_same() -> None:
    (finding,) = findings_of_leaks(read_leaks(OLD, lambda _: []), "o")
    assert finding.id == f"load:leak:?/{GONE}:o"


def test_an_address_that_was_two_functions_names_both() -> None:
    leaks = read_leaks(OLD[:8], lambda _: [("two", "b"), ("one", "a")])
    assert [(leak.function, leak.module) for leak in leaks] == [("one|two", "a|b")]


def test_lines_that_are_none_of_it_are_passed_over() -> None:
    """From a guest anything may come."""
    assert read_leaks(["", "    0xffff", "unreferenced object (size x):", "\0"], place) == []
    assert findings_of_leaks(read_leaks(NEW[-4:], place), "o") == []
