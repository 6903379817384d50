"""What one order says to the agent: commands, their answers, and the host's state as it was read last."""

from __future__ import annotations

from collections import deque

from kbuild.load.ledger import Ledger
from kbuild.load.orders.format import SUCCESS, Expectation
from kbuild.load.protocol import Result, Verb
from kbuild.load.session import Reply, Session
from kbuild.load.state import State, parse_state
from kbuild.outcome import Status
from kbuild.transcript import StepResult


class StopError(Exception):
    """The order cannot go on: later steps would mean nothing."""


class Conversation:
    """Between an order and the agent of the boot in which it is run."""

    def __init__(self, session: Session, ledger: Ledger, before: State) -> None:
        """`before` is the host's state before the order."""
        self._session = session
        self._ledger = ledger
        self.before = before
        self._seen: State | None = before
        """The host's state, as long as nothing was done to it since it was read."""
        self._left: State | None = None
        """A state that is not the one before, and that stayed so for as long as is waited."""
        self.ahead: deque[tuple[Verb, Reply]] = deque()
        """What the agent has done by itself: the next commands need not be sent."""
        self._last: Reply | None = None
        """Of the last command that was sent."""
        self.passed = False
        """It has gone on since then, and cannot be asked any more of how it was."""

    def command(self, verb: Verb, *arguments: str, seconds: float = 0) -> Reply:
        """Send a command, and give what came with its answer to the steps that it belongs to.

        `seconds`: as for `Session.command`.
        """
        if verb not in (Verb.MODULES, Verb.STATE, Verb.DETAIL, Verb.MEMORY, Verb.PARAM, Verb.LEAKS):
            self._seen = None
        if self.ahead:
            done, reply = self.ahead.popleft()
            assert done is verb, f"{verb}, and the agent did {done}"
            return reply
        assert not self.passed, f"{verb} comes too late"
        self.settle()
        reply = self._session.command(verb, *arguments, seconds=seconds)
        self._ledger.attach(reply)
        self._last = reply
        return reply

    def settle(self) -> None:
        """What came with an answer of which no step was made belongs to the step before it."""
        reply, self._last = self._last, None
        if reply is not None and not reply.kept:
            self._ledger.attach_rest(reply)

    def on(self, cpu: int | None, verb: Verb, *arguments: str) -> Reply:
        """The same, done by that CPU; None: any."""
        return (
            self.command(verb, *arguments) if cpu is None else self.command(Verb.ON, str(cpu), verb.value, *arguments)
        )

    def answered(
        self, reply: Reply, action: str, module: str, expectation: Expectation = SUCCESS, excuse: str = ""
    ) -> Result:
        """The command's result; where there is none the order stops. `excuse`: see `Ledger.keep_without_answer`."""
        if isinstance(reply.answer, Result):
            return reply.answer
        self._ledger.keep_without_answer(reply, action, module, expectation, excuse)
        raise StopError

    def end(self, verb: Verb) -> Reply:
        """Ask for the guest's end, and wait for it."""
        self._seen = None
        self.settle()
        reply = self._session.power_off(verb)
        self._ledger.attach(reply)
        return reply

    def nothing(self) -> Reply:
        """In place of a reply, where there was nothing to ask."""
        return Reply(self._session.last_number)

    def settled(self, why: str) -> tuple[State, Reply]:
        """The host's state, which should be as before the order, and gets a moment to become so."""
        if self._seen is not None and self._seen.hash == self.before.hash:
            return self._seen, self.nothing()
        # What has stayed once stays: it is not waited for again.
        self._seen, reply = self._look(Verb.STATE, why, self._left or self.before)
        if self._seen.hash != self.before.hash:
            self._left = self._seen
        return self._seen, reply

    def is_still(self, state: State, why: str) -> bool:
        """Whether the host's state is this one, now or in a moment."""
        return self._look(Verb.STATE, why, state)[0].hash == state.hash

    def whole(self, why: str) -> tuple[State, Reply]:
        """The host's state, whatever it is to be."""
        self._seen, reply = self._look(Verb.STATE, why)
        return self._seen, reply

    def detail(self, why: str) -> State:
        """The host's state, and what is told of it besides: sizes, parameters, symbols."""
        return self._look(Verb.DETAIL, why)[0]

    def modules(self, why: str) -> tuple[State, Reply]:
        """The part of the host's state that is read fast: modules and device nodes."""
        return (self._seen, self.nothing()) if self._seen is not None else self._look(Verb.MODULES, why)

    def _look(self, verb: Verb, why: str, expected: State | None = None) -> tuple[State, Reply]:
        reply = self.command(verb, *([expected.hash] if expected else []))
        got = self.answered(reply, "check", why)
        state = expected if got.same and expected else parse_state(reply.items)
        if got.hash != state.hash:
            reason = f"{why}: a part of the host's state was lost on the way"
            result = StepResult(number=self._ledger.next_number, action="check", status=Status.ERROR, reason=reason)
            self._ledger.keep(result, reply, kind="protocol")
            raise StopError
        return state, reply
