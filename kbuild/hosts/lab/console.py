"""The process that prints what comes over a place's serial line: `console COORDINATOR PLACE ENVIRONMENT NAME`.

The last two may be empty. One of labgrid's drivers reads the line: that of the environment, or its SerialDriver.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import pexpect
from labgrid import Target
from labgrid.driver import SerialDriver
from labgrid.exceptions import NoDriverFoundError
from labgrid.protocol import ConsoleProtocol
from labgrid.resource.remote import RemotePlace

from kbuild.dmesg.record import escape
from kbuild.hosts.lab.devices import environment_of
from kbuild.hosts.spec import LabgridSettings, LabNames

IDLE_S = 60.0
"""For a first byte; then it is asked for once more."""
TOGETHER_S = 0.05
"""In which more bytes come with the first one: to call the driver for each would be slow."""
READ_SIZE = 1 << 14


def console_of(lab: LabgridSettings) -> Any:
    """labgrid's driver, with the line open. Raises labgrid's errors."""
    os.environ["LG_COORDINATOR"] = lab.coordinator
    name = lab.names.console
    if lab.environment is None:
        target = Target(lab.place)
        RemotePlace(target, name=lab.place)
    else:
        environment, role = environment_of(lab)
        target = environment.get_target(role)
    try:
        return target.get_driver(ConsoleProtocol, name=name)
    except NoDriverFoundError:
        if name is not None:
            target.set_binding_map({"port": name})
        driver = SerialDriver(target, name=name)
        target.activate(driver)
        return driver


def copy(console: Any, output: int) -> None:
    """What comes, until the line breaks. Raises what labgrid's driver raises then."""
    while True:
        for size, timeout in ((1, IDLE_S), (READ_SIZE, TOGETHER_S)):
            try:
                data = console.read(size=size, timeout=timeout)
            except pexpect.TIMEOUT:
                break
            while data:
                data = data[os.write(output, data) :]


def main() -> NoReturn:
    """Ends when the line does, with one line on standard error that says why."""
    coordinator, place, environment, name = sys.argv[1:]
    names = LabNames(console=name or None)
    lab = LabgridSettings(coordinator=coordinator, place=place, environment=environment or None, names=names)
    try:
        copy(console_of(lab), sys.stdout.fileno())
    except Exception as error:
        # labgrid, its drivers and what these are made of have errors of many kinds, and here all mean the same.
        print(f"console of place {place}: {escape(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
