"""All orders of some modules and actions, with what each step is expected to do by the model of loader and KVM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec

from kbuild.load.orders.conditions import Facts, holds
from kbuild.load.orders.format import SUCCESS, VENDOR_MODULES, Expectation, FailingLoad, Generate, Step, kernel_name
from kbuild.load.orders.model import IDLE, World

CLOSING = "end"
"""The place of what is done after the last step: unloading, and the look at the footprint."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One action with one module."""

    action: str
    module: str
    called: str
    """How the run's name calls the module: the same on each host."""
    way: FailingLoad | None = None

    def __str__(self) -> str:
        return f"{self.action}-{self.called}"

    def ask(self, world: World) -> tuple[Expectation, World]:
        """What is to be expected of it, and the world afterwards."""
        if self.way is not None:
            return world.fail(self.way)
        return world.load(self.module) if self.action == "load" else world.unload(self.module)

    def step(self, expectation: Expectation) -> Step:
        """As a step of an order."""
        expect = () if expectation is SUCCESS else (msgspec.structs.replace(expectation, when=Step().when),)
        if self.action == "unload":
            return Step(unload=self.module, expect=expect)
        return Step(load=self.module, params=self.way.params if self.way else {}, expect=expect)


def generate(asked: Generate, facts: Facts) -> Iterator[tuple[str, list[tuple[str, Step]]]]:
    """Each sequence's name, `load-vendor,load-other_vendor`, and its steps with their places.

    `asked` is resolved, with the kernel's names of modules.
    """
    requests = [request for module in asked.modules for request in _requests(asked, module, facts)]
    for sequence in _sequences(asked, requests, World(facts), asked.length):
        yield ",".join(map(str, sequence)), [*_steps(asked, sequence, World(facts))]


def _requests(asked: Generate, module: str, facts: Facts) -> Iterator[Request]:
    called = {kernel_name(name): "other_vendor" for name in VENDOR_MODULES.values()}
    called[kernel_name(VENDOR_MODULES[facts.cpu])] = "vendor"
    name = called.get(module, module)
    for action in asked.actions:
        if action != "fail":
            yield Request(action, module, name)
        elif way := next((way for way in asked.fail if way.module == module and holds(way.when, facts)), None):
            yield Request(action, module, name, way)


def _sequences(asked: Generate, requests: list[Request], world: World, length: int) -> Iterator[tuple[Request, ...]]:
    asks = [(request, *request.ask(world)) for request in requests]
    possible = [(request, after) for request, expectation, after in asks if asked.idle or expectation not in IDLE]
    if not length or not possible:
        yield ()  # of the length that was asked for, or nothing more can be done
        return
    for request, after in possible:
        for rest in _sequences(asked, requests, after, length - 1):
            yield (request, *rest)


def _steps(asked: Generate, sequence: tuple[Request, ...], world: World) -> Iterator[tuple[str, Step]]:
    for number, request in enumerate(sequence, 1):
        place = str(number)
        expectation, world = request.ask(world)
        yield place, request.step(expectation)
        for step in _looks(asked, world):
            yield place, step
    while mine := [module for module in asked.modules if module in world.live]:
        free = next(module for module in mine if world.unload(module)[0] is SUCCESS)
        yield CLOSING, Step(unload=free)
        world = world.unload(free)[1]
    yield CLOSING, Step(check="footprint")


def _looks(asked: Generate, world: World) -> Iterator[Step]:
    """What is looked at after each step."""
    for module in asked.modules:
        if module in world.live:
            why = "kernel/module/main.c, do_init_module(): it is live when init has succeeded, and until it is unloaded"
            yield Step(check="module", module=module, state="live", why=why)
        else:
            why = "kernel/module/main.c, free_module(): nothing is left of what was unloaded or could not be loaded"
            yield Step(check="module", module=module, state="absent", why=why)
    there = world.vendor in world.live
    why = "virt/kvm/kvm_main.c, kvm_init() and kvm_exit(): /dev/kvm is there for a vendor module, and goes with it"
    yield Step(check="kvm-device", present=there, why=why)
    if there and asked.smoke:
        yield Step(smoke=asked.smoke)
