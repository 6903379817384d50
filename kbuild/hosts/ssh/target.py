"""A host for as long as a run uses it: taken, brought to a kernel under test, and given back as it was."""

from __future__ import annotations

import getpass
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kbuild import log
from kbuild.elf.kernel import kernel_identity
from kbuild.errors import HarnessError, KbuildError
from kbuild.hosts.base import Machine
from kbuild.hosts.spec import HostSpec
from kbuild.hosts.ssh.away import back, cycle_power, look, wait_for
from kbuild.hosts.ssh.bridge import Errand
from kbuild.hosts.ssh.client import AGENT, Client, UnreachableError, packed
from kbuild.hosts.ssh.facts import Facts, hindrances, read_facts
from kbuild.hosts.ssh.machine import SshMachine
from kbuild.paths import locked, make_folder, state_home, write_atomically

ARCHIVE = "files.tar"
"""In a boot's folder."""
HUNG_TASK_SHARE = 0.4
"""Of a step's silence: so the kernel names the function that hangs before the host is given up."""


@dataclass(frozen=True)
class Deployment:
    """What is brought to a host that has a system of its own."""

    kernel: Path
    """A bzImage."""
    agent: Path
    modules: Mapping[str, bytes]
    """Files of the agent's folder."""
    command_line: tuple[str, ...]


class Target:
    """A context: the host is taken when it begins, and given back when it ends, whatever happened in between.

    Entering raises HarnessError where the host cannot be used as its file says, and leaving where it could not be
    put back as it was; what is to be done then by hand is said.
    """

    def __init__(self, spec: HostSpec, run: str) -> None:
        assert spec.ssh is not None
        self._spec = spec
        self._ssh = spec.ssh
        self._client = Client(spec.ssh)
        # Other computers, or containers, may have the same name: what is ours the state folder knows.
        self._owner = f"{getpass.getuser()}@{socket.gethostname()} {_identity()}"
        self._run = run
        self._stack = ExitStack()
        self._was: Facts | None = None
        """The host as it is to be given back."""
        self._used = False
        self._taken = state_home() / "hosts" / f"{spec.id}.taken"
        """There while a run of ours has it, and after one that was killed."""

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(self._held())
            facts = self._reach()
            if owner := facts["owner"]:
                self._refuse_other(owner)
                # Nobody of ours is at work, so that run was killed: what it found is still on record there.
                log.get().warning("host.left-behind", host=self._spec.id, owner=owner)
                facts = self._as_it_was(read_facts(self._client.verb("was")))
            if problems := [*hindrances(facts, self._spec)]:
                raise HarnessError(f"host {self._spec.id}: {'; '.join(problems)}")
            write_atomically(self._taken, f"{self._run}\n".encode())
            self._was = read_facts(self._client.verb("take", f"{self._owner}/{self._spec.id} {self._run}", owner))
            self._stack = stack.pop_all()
        return self

    def put_back(self, *, force: bool) -> str:
        """After a run that was killed; says what was done. `force`: also where it is somebody else's run."""
        with self._held():
            facts = self._reach()
            if not (owner := facts["owner"]):
                return f"{self._spec.id}: no run has left anything there"
            if not force:
                self._refuse_other(owner)
            self._was = read_facts(self._client.verb("was"))
            self._give_back(self._was)
            return f"{self._spec.id}: as it was before {owner}: {self._was['release']}, {', '.join(self._was.modules)}"

    @contextmanager
    def _held(self) -> Iterator[None]:
        with locked(_lock_of(self._spec.id), blocking=False) as held:
            if not held:
                raise HarnessError(f"host {self._spec.id}: another run of yours is at work there; wait for it")
            yield

    def _refuse_other(self, owner: str) -> None:
        if owner.startswith(f"{self._owner}/"):
            # The machine may have several host files.
            other = owner.removeprefix(f"{self._owner}/").partition(" ")[0]
            if other != self._spec.id and _is_held(other):
                raise HarnessError(
                    f"host {self._spec.id}: another run of yours is at work there, as host {other}; wait for it"
                )
        # This very run may have been at work there from another machine: a cluster's worker that died.
        elif not owner.endswith(f" {self._run}"):
            raise HarnessError(
                f"host {self._spec.id}: it is in use by {owner}; "
                f"if that is no longer so: inv host.restore {self._spec.id} --force"
            )

    def _reach(self) -> Facts:
        """The host as it is now.

        One that does not answer is switched off and on, if it can be, and nobody else is at work there: it is a lab's
        place that we hold, say, or a run of ours was killed there.
        """
        try:
            return look(self._client)
        except UnreachableError as error:
            if error.trouble != "unreachable" or self._ssh.power is None:
                raise HarnessError(f"host {self._spec.id}: {error}") from None
            if not (self._ssh.alone or self._taken.exists()):
                # Somebody may be at work there, or it may be the way to it that is broken.
                raise HarnessError(
                    f"host {self._spec.id}: {error}; its power is left alone, for no run of yours has left it so: "
                    f"see what is wrong, and switch it off and on by hand if need be ({self._ssh.power.words})"
                ) from None
            log.get().warning("host.power", host=self._spec.id, reason=str(error))
            cycle_power(self._ssh)
            return wait_for(self._client, self._spec.limits.boot_s)

    def start(self, deployment: Deployment, folder: Path) -> Machine:
        """The host with that kernel, as a machine; `folder` (made if missing) gets its logs. As for `spec.start`."""
        assert self._was is not None
        release, version = kernel_identity(deployment.kernel)
        make_folder(folder)
        archive, errand = folder / ARCHIVE, folder / "errand.json"
        write_atomically(archive, packed(_files(deployment)))
        asked = Errand(
            host=self._spec,
            release=release,
            version=version,
            archive=str(archive),
            command_line=deployment.command_line,
            fresh=self._used,
            own_words=self._was["command_line"],
            mark=f"kvm-kbuild: {self._run} {secrets.token_hex(4)}",
            hung_task_s=max(2, int(self._spec.limits.silent_s * HUNG_TASK_SHARE)),
        )
        write_atomically(errand, msgspec.json.encode(asked))
        self._used = True
        return SshMachine(self._spec.id, errand, folder)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._was is not None
        with self._stack:
            try:
                self._give_back(self._was)
            except KbuildError as problem:
                raise HarnessError(
                    f"host {self._spec.id} could not be put back as it was: {problem}; "
                    f"when that is mended: inv host.restore {self._spec.id}"
                ) from None

    def _give_back(self, was: Facts) -> None:
        facts = self._as_it_was(was)
        missing = {*was.modules} - {*facts.modules}
        differ = {*was.many.get("parameter", [])} - {*facts.many.get("parameter", [])}
        if missing or differ:
            raise HarnessError(f"not as before: {', '.join([*sorted(missing), *sorted(differ)])}")
        self._client.verb("give_back")
        self._taken.unlink(missing_ok=True)

    def _as_it_was(self, was: Facts) -> Facts:
        """Back to its own kernel, with the modules and settings that it had; gives what it is then."""
        # Who has let it be booted may have been stopped before it went down.
        found, _ = back(self._client, self._spec, lambda now: not now.goes_down, self._say)
        may_boot = self._ssh.kernel != "running"
        # With the words of the kernel under test it is not as it was either: mitigations may be off.
        booted = found.kernel != was.kernel or (
            may_boot and (found["command_line"] != was["command_line"] or _has_crashed(found, was))
        )
        if booted:
            self._reboot(found, was)
        stuck = self._restore()
        if stuck and not booted and may_boot:
            booted = True
            self._reboot(found, was)
            stuck = self._restore()
        facts = look(self._client)
        if stuck:
            raise HarnessError(f"{', '.join(stuck)} cannot be unloaded: boot it")
        if _has_crashed(facts, was):
            raise HarnessError("its kernel has crashed in the meantime: boot it")
        if facts.kernel != was.kernel:
            kernels = f"it runs {' '.join(facts.kernel)}, and ran {' '.join(was.kernel)}"
            if not booted or facts.kernel == found.kernel:
                raise HarnessError(kernels)
            # Its own boot loader has chosen: there is a newer one since then.
            self._say(f"{self._client.target}: {kernels}: it has a newer kernel of its own")
        return facts

    def _reboot(self, found: Facts, was: Facts) -> None:
        log.get().info("host.reboot", host=self._spec.id, to=was["release"])
        self._client.verb("reboot")
        back(self._client, self._spec, lambda now: now.boot != found.boot, self._say)

    def _restore(self) -> list[str]:
        """The modules that cannot be unloaded."""
        return re.findall(r"^stuck=(\w+)", self._client.verb("restore"), re.MULTILINE)

    def _say(self, words: str) -> None:
        log.get().warning("host.says", host=self._spec.id, words=words)


def _identity() -> str:
    """A word that no other state folder has."""
    path = make_folder(state_home()) / "identity"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            write_atomically(path, secrets.token_hex(4).encode())
        return path.read_text("utf-8").strip()


def _lock_of(host: str) -> Path:
    return state_home() / "hosts" / f"{host}.lock"


def _is_held(host: str) -> bool:
    """Whether a run of ours is at work with that host file."""
    if not re.fullmatch(r"[\w.-]+", host) or not _lock_of(host).exists():
        return False
    with locked(_lock_of(host), blocking=False) as free:
        return not free


def _has_crashed(now: Facts, was: Facts) -> bool:
    return now.crashed and not was.crashed


def _files(deployment: Deployment) -> dict[str, bytes]:
    files = {"kernel": deployment.kernel.read_bytes(), AGENT: deployment.agent.read_bytes()}
    return files | {f"modules/{name}": data for name, data in deployment.modules.items()}
