"""The way from one boot of a host to the next: waiting for it, power, and what the last boot left behind."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

from kbuild import command
from kbuild.errors import HarnessError
from kbuild.hosts.spec import HostSpec, SshSettings
from kbuild.hosts.ssh.client import Client, UnreachableError
from kbuild.hosts.ssh.facts import Facts, read_facts

BETWEEN_S = 1.0
"""Between two looks whether a host is there again: nothing tells."""
_PLAIN = re.compile(r"(?!exec )[\w./@%+,: -]+")
"""A command line of one program, without anything that a shell reads."""
POWER_S = 120.0
"""For a command that switches power."""

Say = Callable[[str], None]


class AwayError(HarnessError):
    """The host did not come back."""


def look(client: Client) -> Facts:
    """What the host is now. Raises UnreachableError, and HarnessError for one that does not answer as it should."""
    return read_facts(client.verb("facts"))


def wait_for(client: Client, seconds: float, wanted: Callable[[Facts], bool] = lambda _: True) -> Facts:
    """The host, as soon as it answers and is as wanted: in another boot, say.

    Raises UnreachableError at once for what waiting does not mend, AwayError when the time is up.
    """
    deadline = time.monotonic() + seconds
    last = "it answers, and is not in another boot"
    while time.monotonic() < deadline:
        try:
            if wanted(facts := look(client)):
                return facts
        except UnreachableError as error:
            if error.trouble == "host-key":
                raise
            last = str(error)
        except HarnessError as error:  # it goes down while it is asked
            last = str(error)
        time.sleep(BETWEEN_S)
    raise AwayError(f"{client.target}: did not come back within {seconds:.0f} s: {last}")


def cycle_power(settings: SshSettings) -> None:
    """Off and on again. Raises HarnessError where there is no such command, or it fails."""
    if settings.power is None:
        raise HarnessError(f"{settings.target}: nothing switches its power: do it by hand")
    commands = [settings.power.cycle] if settings.power.cycle else [settings.power.off, settings.power.on]
    for line in commands:
        assert line is not None
        command.run(["sh", "-c", line], timeout=POWER_S)


def back(client: Client, spec: HostSpec, wanted: Callable[[Facts], bool], say: Say) -> tuple[Facts, bool]:
    """The host when it has come back, and whether its power had to be cycled for that. Raises as `wait_for` does."""
    assert spec.ssh is not None
    try:
        return wait_for(client, spec.limits.boot_s, wanted), False
    except AwayError as error:
        if spec.ssh.power is None:
            raise
        say(f"{error}; its power is cycled")
        cycle_power(spec.ssh)
        try:
            return wait_for(client, spec.limits.boot_s, wanted), True
        except AwayError as again:
            raise AwayError(f"{again}, nor before its power was cycled") from None


def start_console(line: str) -> subprocess.Popen[bytes]:
    """The command that shows a host's console; what it complains of goes where this process's complaints go.

    Raises HarnessError where it cannot be started.
    """
    try:
        return subprocess.Popen(
            # A shell that has only one command to run does not stay as its parent: whoever is killed, it is killed too.
            command.leashed(["sh", "-c", f"exec {line}" if _PLAIN.fullmatch(line) else line]),
            # Held open: ipmitool and its like end when theirs does.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        raise HarnessError(f"the console's command cannot be started: {error.strerror}") from None
