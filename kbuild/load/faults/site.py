"""Whose allocation failed: from the kernel's report of an injected failure to a call site with a stable name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from kbuild.dmesg.record import Record

REPORT = "FAULT_INJECTION: forcing a failure."
"""lib/fault-inject.c, fail_dump(): the line before the stack."""
MAX_FRAMES = 40
_FRAME = re.compile(
    r"\s*(?P<name>[\w.]{1,128})\+0x(?P<offset>[0-9a-f]{1,8})/0x[0-9a-f]{1,8}(?: \[(?P<module>[\w-]{1,64})\])?\s*"
)
_TRACE = "Call Trace:"
_END = "</TASK>"
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm)\b.*")
_LOADER = frozenset(
    # kernel/module/main.c, of 6.1 to 7.2: what is below one of them was asked for by the loader itself
    (
        *("load_module", "do_init_module", "init_module_from_file", "idempotent_init_module", "layout_and_allocate"),
        *("__do_sys_finit_module", "__se_sys_finit_module", "__x64_sys_finit_module"),
        *("__do_sys_delete_module", "__se_sys_delete_module", "__x64_sys_delete_module", "free_module"),
    )
)
_CHAINS = ("blocking_notifier_call_chain_robust", "blocking_notifier_call_chain", "notifier_call_chain")
"""They ask for nothing themselves: whom they call counts."""
_INJECTOR = frozenset(
    (
        "dump_stack_lvl",
        "dump_stack",
        "fail_dump",
        "should_fail_ex",
        "should_fail",
        "__should_failslab",
        "should_failslab",
    )
)


class Frame(msgspec.Struct, frozen=True):
    """One line of a stack, from the inside out."""

    function: str
    """Without the compiler's suffixes."""
    offset: int
    module: str | None = None

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x}" + (f" [{self.module}]" if self.module else "")


class Site(msgspec.Struct, frozen=True):
    """A place that asks for memory."""

    name: str
    """`kvm_init/misc_register`: the module's innermost function, or the loader's, and what it calls."""
    frames: tuple[Frame, ...]

    @property
    def stack(self) -> str:
        """From the allocator outwards."""
        return " < ".join(map(str, self.frames))


NOT_TOLD = "not-told"
"""In place of a name: the allocation was made with __GFP_NOWARN, and the kernel says nothing of such a failure."""


def site_of(records: Iterable[Record]) -> Site | None:
    """The call site that the log of a step names; None where it has no report of an injected failure."""
    frames = tuple(_frames(records))
    if not frames:
        return None
    # A module's own code counts first: what the loader or a core function does on its behalf is below it.
    caller = next((at for at, frame in enumerate(frames) if frame.module), None)
    if caller is None:
        caller = next((at for at, frame in enumerate(frames) if frame.function in _LOADER), len(frames) - 1)
    inner = [frame.function for frame in frames[:caller] if frame.function not in _CHAINS]
    callee = inner[-1] if inner else "?"
    return Site(f"{frames[caller].function}/{callee}", frames)


def _frames(records: Iterable[Record]) -> Iterator[Frame]:
    """Of the first report. Frames that the unwinder is not sure of (`? name`) do not match and are left out."""
    lines = (line for record in records if record.facility == 0 for line in record.text.split("\n"))
    # Each search goes on where the last one ended.
    if not any(line.startswith(REPORT) for line in lines) or not any(line.strip() == _TRACE for line in lines):
        return
    count = 0
    for line in lines:
        if line.strip() == _END or count == MAX_FRAMES:
            return
        if (found := _FRAME.fullmatch(line)) is None:
            continue
        name = _SUFFIX.sub("", found["name"])
        if name not in _INJECTOR and not name.startswith("__should_fail"):
            count += 1
            yield Frame(name, int(found["offset"], 16), found["module"])
