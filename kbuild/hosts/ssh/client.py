"""The system's OpenSSH client: the user's configuration, agent, jump hosts and known hosts hold.

Nothing is accepted blindly: a host whose key is not known is not talked to.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kbuild import command
from kbuild.errors import HarnessError
from kbuild.hosts.spec import SshSettings

FOLDER = "/var/lib/kvm-kbuild"
"""On the host; `dir` of host.sh."""
AGENT = "agent"
SCRIPT = Path(__file__).with_name("host.sh")
CONNECT_S = 10
ALIVE_S = 5
ALIVE_TIMES = 2
"""So often the host is asked whether it is still there, where nothing else comes, and so many answers it may miss: ssh
gives up when it should ask for the next time (clientloop.c), which has to be before the agent's silence is too long."""
VERB_S = 60.0
SSH_FAILED = 255
"""ssh(1): the status of an error of its own; else it is the remote command's."""

Trouble = Literal["host-key", "refused", "unreachable"]
_SAID: dict[Trouble, tuple[str, ...]] = {
    "host-key": ("Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED"),
    "refused": ("Permission denied", "Too many authentication failures"),
}
_WHAT: dict[Trouble, str] = {
    "host-key": "its host key is not the one that is known; see who it is and mend known_hosts by hand",
    "refused": "it refuses to let us in",
    "unreachable": "cannot be reached",
}


class UnreachableError(HarnessError):
    """No connection came about, or it broke. `trouble`: a wrong host key never mends by waiting."""

    def __init__(self, target: str, said: str) -> None:
        self.trouble = trouble_in(said)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        # Of the banner of a changed key the sentence counts, and not the frame around it.
        words = next((line for line in lines if any(one in line for one in _SAID.get(self.trouble, ()))), None)
        super().__init__(f"{target}: {_WHAT[self.trouble]}: {words or (lines[-1] if lines else 'ssh said nothing')}")


def trouble_in(said: str) -> Trouble:
    """What kept ssh from its work, by what it said."""
    for trouble, words in _SAID.items():
        if any(one in said for one in words):
            return trouble
    return "unreachable"


def packed(files: Mapping[str, bytes]) -> bytes:
    """A tar archive. The agent can be executed, all else be read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name == AGENT else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Client:
    """Calls host.sh on one host, as root."""

    def __init__(self, settings: SshSettings) -> None:
        self._settings = settings

    @property
    def target(self) -> str:
        """As ssh takes it."""
        return self._settings.target

    def argv(self, *remote: str) -> list[str]:
        """A command line that runs `remote` on the host, as the user that ssh logs in."""
        options = (
            *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"),
            *("-o", f"ServerAliveInterval={ALIVE_S}", "-o", f"ServerAliveCountMax={ALIVE_TIMES}"),
            # A connection that others share would outlive a boot of the host, and then hang.
            *("-o", "ControlMaster=no", "-o", "ControlPath=none"),
        )
        return ["ssh", "-T", *options, *self._settings.options, "--", self.target, shlex.join(remote)]

    def agent(self) -> list[str]:
        """The command line that talks to the agent on standard input and output."""
        if self._settings.program:
            return self.argv(*self.root, self._settings.program, "agent")
        return self.argv(*self.root, f"{FOLDER}/files/{AGENT}", "--stdio", "--modules", f"{FOLDER}/files/modules")

    def verb(self, verb: str, *arguments: str, timeout: float = VERB_S) -> str:
        """What host.sh prints. Raises UnreachableError, and HarnessError with its words where it fails."""
        if self._settings.program:
            return self._run(self.argv(*self.root, self._settings.program, verb, *arguments), b"", verb, timeout)
        argv = self.argv(*self.root, "sh", "-s", "--", verb, *arguments)
        return self._run(argv, SCRIPT.read_bytes(), verb, timeout)

    def put(self, archive: bytes, timeout: float = VERB_S) -> None:
        """Unpack a tar archive in the host's `files` folder, in place of what is there."""
        files = f"{FOLDER}/files"
        if self._settings.program:
            argv = self.argv(*self.root, self._settings.program, "put")
        else:
            unpack = f"umask 077 && rm -rf {files} && mkdir -p {files} && tar -x -f - -C {files} && sync"
            argv = self.argv(*self.root, "sh", "-c", unpack)
        self._run(argv, archive, "put", timeout)

    @property
    def root(self) -> Sequence[str]:
        """The words that make root of the user that ssh logs in."""
        return ("sudo", "-n") if self._settings.sudo else ()

    def _run(self, argv: list[str], stdin: bytes, verb: str, timeout: float) -> str:
        done = command.run(argv, stdin=stdin, timeout=timeout, check=False)
        if done.status == SSH_FAILED:
            raise UnreachableError(self.target, done.output)
        if done.status:
            lines = [line for line in done.output.splitlines() if line.strip()]
            raise HarnessError(f"{self.target}: {verb}: {lines[-1] if lines else f'status {done.status}'}")
        return done.output
