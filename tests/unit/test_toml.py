"""Protects the user from guessing: a wrong profile is one line with file, line, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild import toml
from kbuild.errors import UserError
from kbuild.profile import ProfileFile

GOOD = """\
title = "t"

[configure]
fragments = ["base"]

[load]
orders = []
hosts = []

[[known]]
finding = "a:b:c:d"
reason = "r"

[[known]]
finding = "e:f:g:h"
reason = "r"
"""


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        toml.parse(text, ProfileFile, "p.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good() -> None:
    assert toml.parse(GOOD, ProfileFile, "p.toml").known[1].finding == "e:f:g:h"


@pytest.mark.parametrize(
    ("old", "new", "place", "expected"),
    [
        ('fragments = ["base"]', 'fragments = "base"', "p.toml:4: configure.fragments: ", "expected `array`"),
        (
            'fragments = ["base"]',
            'fragment = ["base"]',
            "p.toml:4: configure.fragment: ",
            "known here: fragments, base",
        ),
        ("hosts = []", "hosts = [1]", "p.toml:8: load.hosts[0]: ", "expected `str`"),
        ('title = "t"', "title = 3", "p.toml:1: title: ", "expected `str`"),
        ('finding = "e:f:g:h"', "", "p.toml:14: known[1]: ", "missing required field `finding`"),
        ("[configure]", "[configure", "p.toml:3: ", "not TOML"),
        (
            'finding = "e:f:g:h"',
            'finding = "e:f:g:h"\nkernels = "6.1 to 7"',
            "p.toml:16: known[1].kernels: ",
            "not a kernel range",
        ),
        ('finding = "e:f:g:h"', 'finding = "e:f:g:h"\nsince = 1', "p.toml:16: known[1].since: ", "expires"),
    ],
)
def test_bad(old: str, new: str, place: str, expected: str) -> None:
    text = message(GOOD.replace(old, new))
    assert text.startswith(place)
    assert expected in text


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        toml.read(tmp_path / "none.toml", ProfileFile)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        toml.read(tmp_path / "binary.toml", ProfileFile)
