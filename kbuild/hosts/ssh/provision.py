"""Making a machine a test host: `scripts/provision-host`, brought there and run as root."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from kbuild import command
from kbuild.errors import HarnessError, UserError
from kbuild.hosts.spec import SshSettings
from kbuild.hosts.ssh.client import SCRIPT, SSH_FAILED, Client, UnreachableError, packed
from kbuild.paths import PROJECT

PROVISION = PROJECT / "scripts/provision-host"
SECONDS = 900.0
"""Packages come over the network."""
WRONG_WORDS, NOT_SO = 2, 3
"""Statuses of provision-host."""


def provision(settings: SshSettings, words: Sequence[str], key: Path | None, tell: Callable[[str], None]) -> bool:
    """Run provision-host there with these words; `tell` gets each line that it says.

    False where it would do something (`--check`), or cannot do it there. Raises UserError for wrong words and a key
    that cannot be read, HarnessError where the machine cannot be reached, or fails.
    """
    files = {"provision-host": PROVISION.read_bytes(), "host.sh": SCRIPT.read_bytes()}
    if key is not None:
        try:
            files["key"] = key.expanduser().read_bytes()
        except OSError as error:
            raise UserError(f"--key {key}: cannot be read: {error.strerror}") from None
        words = [*words, "--key", "key", "--script", "host.sh"]
    client = Client(settings)
    run = shlex.join([*client.root, "sh", "./provision-host", *words])
    there = f'd=$(mktemp -d) && cd "$d" && tar -x -f - && {run}; s=$?; rm -rf "$d"; exit $s'
    done = command.run(client.argv("sh", "-c", there), stdin=packed(files), timeout=SECONDS, check=False, on_line=tell)
    if done.status == SSH_FAILED:
        raise UnreachableError(client.target, done.output)
    if done.status == WRONG_WORDS:
        raise UserError(done.output.splitlines()[-1] if done.output else "provision-host refused its words")
    if done.status not in (0, NOT_SO):
        raise HarnessError(f"{client.target}: provision-host ended with status {done.status}")
    return done.status == 0
