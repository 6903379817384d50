"""Protects what a guest that ran is held against: it depends on the input, and on the numbers that the agent has."""

from __future__ import annotations

import random
import re

import pytest

from kbuild.load import guests
from kbuild.load.agent import SOURCES
from kbuild.load.guests import SmokeKind, expected_output


def test_answers_that_can_be_worked_out_by_hand() -> None:
    assert expected_output(SmokeKind.REAL_MODE, 0) == 0x3C21
    assert expected_output(SmokeKind.REAL_MODE, 0xFFFF_0001) == 0x4F1B + 0x3C21
    assert expected_output(SmokeKind.LONG_MODE, 1) == 0x9E3779B97F4A7C15 + (1 << 23)
    assert (
        expected_output(SmokeKind.PROTECTED_MODE, 1)
        == 0x9E3779B9 | ((0x9E3779B9 << 7 | 0x9E3779B9 >> 25) % 2**32) << 32
    )
    # An interrupt of vector 32, three times: the input has no bit that asks for another one.
    k, vector = 0x9E3779B97F4A7C15, 32 << 23
    assert expected_output(SmokeKind.INTERRUPTS, 0) == ((vector * k + vector) * k + vector) % 2**64


@pytest.mark.parametrize("kind", SmokeKind)
def test_each_bit_of_the_input_counts(kind: SmokeKind) -> None:
    value = random.Random(kind).getrandbits(64)
    bits = 16 if kind is SmokeKind.REAL_MODE else 64
    answers = {expected_output(kind, value ^ 1 << bit) for bit in range(bits)}
    assert expected_output(kind, value) not in answers
    assert len(answers) == bits
    assert all(0 <= answer < 1 << bits for answer in answers)


def test_no_kind_gives_the_answer_of_another_one() -> None:
    value = random.Random(0).getrandbits(64)
    assert len({expected_output(kind, value) for kind in SmokeKind}) == len(SmokeKind)


def test_the_agent_knows_the_same_kinds_and_numbers() -> None:
    table = re.findall(r'\{ "([a-z-]+)", run_(\w+) \}', (SOURCES / "smoke.c").read_text())
    assert [name for name, _ in table] == [*SmokeKind]
    assert all(name.replace("-", "_") == function for name, function in table)
    header = (SOURCES / "guest.h").read_text()
    defined = {name: int(value, 0) for name, value in re.findall(r"#define (\w+) (0x[0-9a-f]+|[0-9]+)\b", header)}
    for here, there in (
        ("ALIASES", "ALIASES"),
        ("DIRTY_ROUNDS", "DIRTY_ROUNDS"),
        ("DIRTY_STRIDE", "DIRTY_STRIDE"),
        ("DATA_PAGES", "DATA_PAGES"),
        ("WINDOW", "GUEST_WINDOW"),
        ("FIRST_VECTOR", "FIRST_VECTOR"),
        ("VECTORS", "VECTORS"),
        ("INTERRUPTS", "INTERRUPTS"),
        ("TURNS", "TURNS"),
    ):
        assert vars(guests)[here] == defined[there]
    saved = sum(defined[f"SAVED_{what}"] for what in ("GENERAL", "SSE", "DEBUG", "MSRS")) + 2
    assert saved == guests.REGISTERS
