"""A witness as a person can follow it in the source: function by function, with each branch that was not forced."""

from __future__ import annotations

from collections.abc import Iterator

from kbuild.elf.code.link import Program
from kbuild.elf.code.walk import Step
from kbuild.elf.places import Places
from kbuild.elf.rules.orders import Answer


class Story:
    """Tells witnesses of one program."""

    def __init__(self, program: Program) -> None:
        self._places = Places(program)

    def tell(self, answer: Answer) -> Iterator[str]:
        """Lines from the entry to where the rule is broken; a call that returned on the way is one line."""
        assert answer.witness is not None
        open_calls: list[list[tuple[int, str]]] = [[]]
        for step in answer.witness.steps:
            depth = len(open_calls) - 1
            if step.kind == "return":
                if len(open_calls) > 1:
                    open_calls.pop()
                    open_calls[-1].append(
                        (depth - 1, f"{self._called(step)} returns to {self._places.told(step.site)}")
                    )
            elif step.kind == "call":
                open_calls.append([(depth, f"{self._called(step)} is called at {self._places.told(step.site)}")])
            elif step.kind == "branch":
                which = "taken" if step.taken else "not taken"
                open_calls[-1].append((depth, f"branch {which} at {self._places.told(step.site)}"))
        for some in open_calls:
            for depth, text in some:
                yield "  " * depth + text
        then = answer.rule.then.told([answer.witness.called]) if answer.witness.called else answer.then
        yield "  " * (len(open_calls) - 1) + f"{then} at {self._places.told(answer.witness.end)}"
        if answer.rule.first is not None:
            yield f"{answer.first} has not happened on this way"

    def _called(self, step: Step) -> str:
        name = step.call.name if step.call is not None else None
        return f"{name}()" if name is not None else "a function"
