"""What a place has, as a machine that is reached by SSH: whom ssh asks for, and commands for console and power.

labgrid's own drivers do the work, in processes of their own: its client switches the power, `console.py` reads the
serial line. Only SSH is the system's: it checks host keys, and labgrid's driver does not.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from labgrid import Environment, target_factory
from labgrid.driver import SSHDriver
from labgrid.exceptions import InvalidConfigError, NoConfigFoundError
from labgrid.protocol import ConsoleProtocol, PowerProtocol

from kbuild.dmesg.record import escape
from kbuild.errors import HarnessError
from kbuild.hosts.lab.coordinator import Place, Resource
from kbuild.hosts.spec import HostSpec, LabgridSettings, Power, SshSettings

SERVICES = ("NetworkService",)
CONSOLES = ("NetworkSerialPort",)
POWER_PORTS = (
    *("NetworkPowerPort", "NetworkUSBPowerPort", "NetworkSiSPMPowerPort", "PDUDaemonPort"),
    *("TasmotaPowerPort", "NetworkYKUSHPowerPort", "NetworkSysfsGPIO"),
)
"""What `labgrid-client power` switches without an environment (labgrid/remote/client.py, power())."""


Word = Annotated[str, msgspec.Meta(pattern=r"^[\w.:][\w.:-]*$")]
"""What came over the network and becomes a word of ssh's."""


class Service(msgspec.Struct):
    """labgrid's NetworkService. A password is of no use: ssh asks nobody for one."""

    address: Word
    username: Word
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22


class Way(msgspec.Struct):
    """What an exporter says of the way to its resources: whether it goes over the exporter's own computer."""

    proxy_required: bool = False
    proxy: Word | None = None


def as_ssh(spec: HostSpec, place: Place) -> HostSpec:
    """The host as one of kind `ssh`. Raises HarnessError where the place does not say where SSH is to go."""
    lab = spec.labgrid
    assert lab is not None
    drivers = _drivers(lab)
    resource = _one(place, SERVICES, lab.names.service, "service")
    if resource is None:
        raise HarnessError(f"place {place.name}: no NetworkService says where SSH is to go; is its exporter up?")
    try:
        service, way = msgspec.convert(resource.params, Service), msgspec.convert(resource.extra, Way)
    except msgspec.ValidationError as error:
        raise HarnessError(f"place {place.name}: its NetworkService {escape(resource.name)}: {error}") from None
    console = _has(drivers, ConsoleProtocol) or _one(place, CONSOLES, lab.names.console, "console") is not None
    power = _has(drivers, PowerProtocol) or _one(place, POWER_PORTS, lab.names.power, "power") is not None
    ssh = SshSettings(
        target=f"{service.username}@{service.address}",
        # Of what ssh is told twice the first counts: the file's own words.
        options=(*lab.options, *_options(service, way, drivers)),
        sudo=lab.sudo,
        program=lab.program,
        kernel=lab.kernel,
        virtual_machines=lab.virtual_machines,
        console=console_command(lab) if console else None,
        power=Power(cycle=power_command(lab)) if power else None,
        alone=True,
    )
    return msgspec.structs.replace(spec, kind="ssh", ssh=ssh, labgrid=None)


def _options(service: Service, way: Way, drivers: Sequence[tuple[type, dict[str, Any]]]) -> Iterator[str]:
    yield from ("-p", str(service.port))
    for kind, arguments in drivers:
        if issubclass(kind, SSHDriver) and arguments.get("keyfile"):
            yield from ("-i", str(arguments["keyfile"]))
    # As labgrid's own drivers go.
    if jump := (way.proxy if way.proxy_required else None) or os.environ.get("LG_PROXY"):
        yield from ("-J", jump)


def console_command(lab: LabgridSettings) -> str:
    """Prints what comes over the place's serial line."""
    words = [sys.executable, "-P", "-m", "kbuild.hosts.lab.console", lab.coordinator, lab.place]
    return f"exec {shlex.join([*words, lab.environment or '', lab.names.console or ''])}"


def power_command(lab: LabgridSettings) -> str:
    """Switches the place off and on."""
    words = [sys.executable, "-P", "-m", "labgrid.remote.client", "-x", lab.coordinator, "-p", lab.place]
    words += ["-c", lab.environment] if lab.environment else []
    words += ["power", "cycle"]
    return f"exec {shlex.join([*words, *(['--name', lab.names.power] if lab.names.power else [])])}"


def environment_of(lab: LabgridSettings) -> tuple[Any, str]:
    """The environment and the name of the target in it that is this place.

    Raises HarnessError for a file that cannot be read, or says nothing of the place.
    """
    assert lab.environment is not None
    try:
        environment = Environment(lab.environment)
        environment.config.set_option("coordinator_address", lab.coordinator)
        for role, target in environment.config.get_targets().items():
            resources, _ = target_factory.normalize_config(target)
            if lab.place in resources.get("RemotePlace", {}):
                return environment, role
    except (NoConfigFoundError, InvalidConfigError, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise HarnessError(f"{lab.environment}: cannot be read: {escape(' '.join(str(error).split()))}") from None
    raise HarnessError(f"{lab.environment}: none of its targets has 'RemotePlace: {{name: {lab.place}}}'")


def _drivers(lab: LabgridSettings) -> list[tuple[type, dict[str, Any]]]:
    """Those that the environment gives the place, with their arguments."""
    if lab.environment is None:
        return []
    environment, role = environment_of(lab)
    _, drivers = target_factory.normalize_config(environment.config.get_targets()[role])
    found: list[tuple[type, dict[str, Any]]] = []
    for name, several in drivers.items():
        try:
            kind = target_factory.class_from_string(name)
        except KeyError as error:
            raise HarnessError(f"{lab.environment}: {escape(str(error.args[0]))}") from None
        for arguments, _ in several.values():
            if isinstance(keyfile := arguments.get("keyfile"), str):
                arguments["keyfile"] = environment.config.resolve_path(keyfile)
            found.append((kind, arguments))
    return found


def _has(drivers: Sequence[tuple[type, dict[str, Any]]], protocol: type) -> bool:
    return any(issubclass(kind, protocol) for kind, _ in drivers)


def _one(place: Place, kinds: Sequence[str], name: str | None, key: str) -> Resource | None:
    """The resource of such a kind; the file says which where there are several."""
    found = [one for one in place.resources if one.kind in kinds and name in (None, one.name)]
    if len(found) > 1:
        found = [one for one in found if one.name == "default"] or found  # as labgrid's Target.get_resource()
    if len(found) > 1:
        names = ", ".join(escape(one.name) for one in found)
        raise HarnessError(f"place {place.name}: has several of {'/'.join(kinds)}: {names}: say labgrid.names.{key}")
    if name is not None and not found and key == "service":
        raise HarnessError(f"place {place.name}: has no {'/'.join(kinds)} of the name {name}")
    return found[0] if found else None
