"""What every host gives: its description from a file, and a machine with a console and an agent line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self

import msgspec

from kbuild.hosts.cpu import CpuSample

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds in which the emulator could run (`Machine.starved`), on a machine that boots in `usual_boot_s`.

    On one that takes longer to boot all of them are longer, in proportion.
    """

    boot_s: Seconds = 60
    """From the emulator's start to the agent's first line."""
    step_s: Seconds = 30
    """One step, however much it says."""
    silent_s: Seconds = 20
    """Within a step, without a byte on either line."""
    usual_boot_s: Seconds | None = None
    """What a boot takes where these limits were set; absent: they are the same everywhere."""

    def times(self, factor: float) -> Limits:
        """All of them, so many times as long."""
        usual = self.usual_boot_s and self.usual_boot_s * factor
        return Limits(self.boot_s * factor, self.step_s * factor, self.silent_s * factor, usual)


@dataclasses.dataclass(frozen=True)
class BootImage:
    """What a machine boots: all is in the initramfs."""

    kernel: Path
    """A bzImage."""
    initramfs: Path
    """An uncompressed newc archive with the agent as /init."""
    command_line: tuple[str, ...]
    """Added to what the host needs itself (its console)."""
    disk: Path | None = None
    """From `disk.make_disk`, for what the machine is to get after its start."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Something that came from a machine. `exit`: the emulator ended, `data` says how, for a person."""

    source: Literal["agent", "console", "exit"]
    data: bytes
    failed: bool = False
    """Of `exit`: the emulator was killed or failed by itself. False where the guest made it end, by power-off,
    reset or triple fault."""
    unclear: bool = False
    """Of `failed`: it may as well be the guest's doing, which nothing there tells."""


class Machine(Protocol):
    """A running machine. Leaving the context ends it and everything that it started."""

    clock_goes_on: bool = False
    """Its guest's clock goes on while the emulator is kept from running: to the guest that is time that was lost."""

    def send(self, data: bytes) -> None:
        """Write to the agent's line. A machine that is gone is told by `receive`, never by an exception here."""

    def receive(self, timeout: float) -> list[Chunk]:
        """Wait up to `timeout` seconds for anything to come; empty when nothing did.

        `exit` comes once, after everything that came before the end; later calls return at once.
        """

    def sample(self) -> CpuSample | None:
        """What the CPU is doing now; the machine stands still while it is asked, for some hundredths of a second.

        Only from the thread that receives; what comes meanwhile is kept for `receive`. None where the host
        cannot tell, has more than one CPU, or does not answer.
        """
        return None

    def starved(self) -> float:
        """Seconds of wall clock since its start in which it was kept from running: it waited for a CPU, or was stopped.

        To be asked several times a second. 0 where the host cannot tell.
        """
        return 0.0

    def excused(self) -> float:
        """Seconds of wall clock since its start that have limits of their own, be they long."""
        return 0.0

    def pause(self) -> None:
        """Nothing is wanted of the guest until `resume`: it need not run, and its clock stands still if it does not."""
        return

    def resume(self) -> None:
        """Let the guest go on."""
        return

    def snapshot(self) -> Snapshot | None:
        """Keep the guest as it is now, for any number of machines to start from. This one ends.

        Only while nothing is on its way on either line. None where the host cannot do that: then it runs on.
        """
        return None

    def stop(self) -> None:
        """End the emulator now. May be called from any thread and more than once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Snapshot(Protocol):
    """A guest at one moment."""

    def start(self, folder: Path) -> Machine:
        """A machine that goes on from there; `folder` (made if missing) gets its logs.

        As with `spec.start`, it dies with the thread that calls this, and needs the files of the first machine's image.
        Raises HarnessError when it cannot be started.
        """

    def close(self) -> None:
        """Forget it. Machines that were started go on."""
