"""The process that stands in an emulator's place for a host that is reached by SSH.

It brings the host to the kernel under test, starts the agent there, and lets it talk on the line that it was given.
When the connection ends it finds out why: whether the host is still up in the same boot, has gone down and come back,
or stays away; and hands what the kernel left (its log, pstore, kdump) to the console's line, where it is judged like
what a console said. On standard output it says in which state it is (`state STATE`), and last why it ended.
Status 0: the agent ended as it was asked to; 1: the host failed; 2: whose fault it is cannot be told here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from kbuild import command
from kbuild.errors import HarnessError, KbuildError
from kbuild.hosts.spec import HostSpec
from kbuild.hosts.ssh.away import back, start_console
from kbuild.hosts.ssh.client import SSH_FAILED, Client
from kbuild.hosts.ssh.facts import Facts

LOG_LINES = 4000
"""Of a host's log that are looked at when its connection was lost."""
CONSOLE_S = 15.0
"""Until a word that is written to the host's log is seen on its console."""
PUT_S = 600.0
LAST_STEP = re.compile(rb"kvm-kbuild: step \d+ begin")
_PIECE = re.compile(r"[A-Z]\w*#(?P<dump>\d{1,9}) Part(?P<part>\d{1,9})$")
"""fs/pstore/platform.c, pstore_dump(): `Panic#2 Part1`."""
LAST_DUMP = 1 << 30
"""Where what is whole stands: a piece that is told there too is older."""
KEPT = 2 << 20
"""Bytes of evidence that are handed on."""
HOST_FAILED, UNCLEAR = 1, 2
"""Statuses: what went wrong is the host's, or may be the kernel's."""
NOWHERE = "neither a console nor pstore nor kdump says why"
BOOTING, TALKING, SEARCHING = "booting", "talking", "searching"


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What the bridge is asked for, as a JSON file."""

    host: HostSpec
    release: str
    version: str
    """Of the kernel under test: `uname -r` and `uname -v`."""
    archive: str
    """A tar file with `kernel`, `agent` and `modules/`."""
    command_line: tuple[str, ...]
    """Added to the host's own."""
    own_words: str
    """The host's own command line: what runs now may have been booted with more."""
    fresh: bool
    """Boot also where the kernel under test runs already: it is not as it was."""
    mark: str
    """A word that nothing else would write to the host's log."""
    hung_task_s: int


class Bridge:
    """One errand. `console` gets what the host's console says, and evidence from elsewhere."""

    def __init__(self, errand: Errand, console: BinaryIO) -> None:
        assert errand.host.ssh is not None
        self._errand = errand
        self._spec = errand.host
        self._ssh = errand.host.ssh
        self._client = Client(self._ssh)
        self._console = console
        self._seen = threading.Event()
        """The console is known to be this host's: what came before may be of another boot."""

    def run(self, agent: int) -> int:
        """The status to end with."""
        say(f"state {BOOTING}")
        if self._ssh.console:
            process = start_console(self._ssh.console)
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        facts = self._boot()
        say(f"state {TALKING}")
        status = subprocess.run(
            command.leashed(self._client.agent()), stdin=agent, stdout=agent, check=False
        ).returncode
        if status == 0:
            return 0
        say(f"state {SEARCHING}")
        status, why = self._why(facts, status)
        say(f"{self._client.target}: {why}")
        return status

    # To the kernel under test.

    def _boot(self) -> Facts:
        # It may be on its way back from the boot before.
        facts, _ = back(self._client, self._spec, lambda now: not now.goes_down, say)
        wanted = (self._errand.release, self._errand.version)
        fresh = self._errand.fresh
        if self._ssh.kernel == "running" and (fresh or facts.kernel != wanted):
            found = "is not as it was" if fresh else f"runs {' '.join(facts.kernel)}"
            raise HarnessError(
                f"{self._client.target}: {found}, the kernel under test is {' '.join(wanted)}, "
                'and kernel = "running" lets it not be booted'
            )
        self._client.put(Path(self._errand.archive).read_bytes(), PUT_S)
        self._mark()
        if self._ssh.kernel == "kexec" and (fresh or facts.kernel != wanted) and not facts["kexec_disabled"]:
            # The kernel that runs has no kexec. It is one of ours: its own has, or the host would not have been taken.
            self._client.verb("reboot")
            facts, fresh = self._another_boot(facts), False
            self._mark()
        if fresh or facts.kernel != wanted:
            say(f"{self._client.target}: boots {self._errand.release}")
            words = [*own_words(self._errand.own_words, facts), *self._errand.command_line]
            if self._ssh.kernel == "install":
                self._client.verb("boot_install", self._errand.release, *arguments(words))
            else:
                self._client.verb("boot_kexec", self._errand.release, f"--command-line={' '.join(words)}")
            facts = self._another_boot(facts)
            if facts.kernel != wanted:
                found = self.hand_over(self._client.verb("evidence"))
                raise HarnessError(
                    f"{self._client.target}: came back with {' '.join(facts.kernel)}, "
                    f"not with the kernel under test; {found or NOWHERE}"
                )
            self._mark()
        self._client.verb("ready", str(self._errand.hung_task_s))
        return facts

    def _another_boot(self, before: Facts) -> Facts:
        return back(self._client, self._spec, lambda now: now.boot != before.boot, say)[0]

    # The console.

    def _mark(self) -> None:
        """Write the mark to the host's log: what comes behind it is of this errand. Wait until its console shows it."""
        self._client.verb("mark", self._errand.mark)
        if not self._ssh.console or self._seen.is_set():
            return
        if not self._seen.wait(CONSOLE_S):
            say(f"{self._client.target}: its console does not show what its kernel writes, and is not listened to")

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        mark, waiting = self._errand.mark.encode(), b""
        while data := os.read(process.stdout.fileno(), 1 << 16):
            if not self._seen.is_set():
                waiting = (waiting + data)[-(1 << 17) :]
                _, found, data = waiting.partition(mark)
                if not found:
                    continue
                self._seen.set()
            self._console.write(data)
        say(f"{self._client.target}: its console's command has ended")

    # After the end.

    def _why(self, before: Facts, status: int) -> tuple[int, str]:
        """Why the agent talks no more, and the status for it. What the kernel left goes to the console's line first."""
        try:
            facts, cycled = back(self._client, self._spec, lambda _: True, say)
        except KbuildError as error:
            return UNCLEAR, f"the connection was lost, and the host is gone: {error}"
        if facts.boot == before.boot:
            self.hand_over(since(self._errand.mark, self._client.verb("log", str(LOG_LINES))))
            how = "the connection was lost" if status == SSH_FAILED else f"the agent ended with status {status}"
            return HOST_FAILED, f"{how}; the host is up, and still in the same boot"
        if found := self.hand_over(self._client.verb("evidence")):
            return UNCLEAR, f"the host went down; {found}"
        if cycled:
            seconds = f"{self._spec.limits.boot_s:.0f} s"
            what = f"did not answer for {seconds}, until its power was cycled: it hung, or lost its network"
        else:
            what = "went down and came back: it was reset, or lost its power"
        return UNCLEAR, f"the host {what}; {NOWHERE}"

    def hand_over(self, text: str) -> str:
        """What the kernel said since the last step began goes to the console's line; gives where it was found."""
        files = [line.partition("=")[2].partition(":")[0] for line in text.splitlines() if line.startswith("evidence=")]
        data = "\n".join(in_order(text)).encode()[-KEPT:]
        *_, last = LAST_STEP.split(data)
        if last.strip():
            self._console.write(b"\n" + last + b"\n")
        return f"its kernel's last words are in {', '.join(files)}" if files else ""


def since(mark: str, text: str) -> str:
    """The lines of a log behind the last mark; all of one that is full of what came since; else none is ours."""
    lines = text.splitlines()
    marked = [at for at, line in enumerate(lines) if mark in line]
    if marked:
        return "\n".join(lines[marked[-1] + 1 :])
    return text if len(lines) >= LOG_LINES else ""


def in_order(text: str) -> Iterator[str]:
    """The lines of host.sh's evidence. EFI and ERST keep a panic in pieces, of which the first holds its end."""
    pieces: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("evidence="):
            pieces.append([])
        else:
            pieces[-1].append(line)

    def place(piece: list[str]) -> tuple[int, int]:
        found = next((match for line in piece[:3] if (match := _PIECE.match(line))), None)
        return (int(found["dump"]), -int(found["part"])) if found else (LAST_DUMP, 0)

    for piece in sorted(pieces, key=place):
        yield from piece


def own_words(command_line: str, facts: Facts) -> list[str]:
    """The host's own kernel command line, for another kernel: without an initrd nobody finds a file system by UUID."""
    words = [word for word in command_line.split() if not word.startswith(("BOOT_IMAGE=", "initrd="))]
    root = f"PARTUUID={facts['root_partuuid']}" if facts["root_partuuid"] else facts["root"]
    return [f"root={root}" if word.startswith(("root=UUID=", "root=LABEL=")) and root else word for word in words]


def arguments(words: list[str]) -> list[str]:
    """Words of a command line as GRUB takes them: one with blanks is whole, and GRUB puts the quotes around it."""
    whole = re.findall(r'(?:"[^"]*"|\S)+', " ".join(words))
    return [word.replace('"', "") if re.search(r"\s", word) else word for word in whole]


def say(text: str) -> None:
    """To whoever started the bridge."""
    print(text, flush=True)


def main() -> NoReturn:
    """`bridge ERRAND CONSOLE AGENT`: a file, and the numbers of two descriptors."""
    path, console, agent = sys.argv[1:]
    errand = msgspec.json.decode(Path(path).read_bytes(), type=Errand)
    with os.fdopen(int(console), "wb", buffering=0) as line:
        try:
            sys.exit(Bridge(errand, line).run(int(agent)))
        except KbuildError as error:
            say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
