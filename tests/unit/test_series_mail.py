"""Protects the choice of what is judged from a list's thread: the patches of its newest version, in their order.

All of them, and nothing else that lies in the mbox.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.series.mail import read_mbox

DIFF = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


def mail(subject: str, body: str = DIFF, headers: str = "") -> str:
    start = "From dev@example.org Thu Jan  1 00:00:00 2026\nFrom: Dev <dev@example.org>\n"
    return f"{start}Subject: {subject}\n{headers}\n{body}\n\n"


def mbox(folder: Path, *mails: str) -> str:
    path = folder / "thread.mbox"
    path.write_text("".join(mails))
    return str(path)


def subjects(name: str) -> list[str]:
    return [one.subject for one in read_mbox(name).mails]


def test_patches_come_in_their_order_and_nothing_else(tmp_path: Path) -> None:
    name = mbox(
        tmp_path,
        mail("[PATCH 0/2] KVM: Cover", "It mends.\n\nbase-commit: " + "a" * 40 + "\n"),
        mail("[PATCH 2/2] KVM: Second"),
        mail("Re: [PATCH 2/2] KVM: Second", "> " + DIFF.replace("\n", "\n> ")),
        mail("Re: [PATCH 1/2] KVM: First", "How about this instead?\n" + DIFF),
        mail("[PATCH 1/2] KVM: First"),
        mail("[PATCH 1/2] KVM: First"),  # the list's copy
        mail("[syzbot] a report", DIFF),
    )
    assert subjects(name) == ["KVM: First", "KVM: Second"]
    assert read_mbox(name).base == "a" * 40


def test_the_newest_version_counts(tmp_path: Path) -> None:
    name = mbox(
        tmp_path,
        mail("[PATCH 1/2] KVM: Old one"),
        mail("[PATCH 2/2] KVM: Old two"),
        mail("[RFC PATCH v10] KVM: New one"),
        mail("[PATCH v2 1/1] KVM: Between"),
    )
    assert subjects(name) == ["KVM: New one"]


def test_a_version_may_be_part_of_the_word(tmp_path: Path) -> None:
    name = mbox(tmp_path, mail("[PATCH] KVM: Old"), mail("[PATCHv2] KVM: New"))
    assert subjects(name) == ["KVM: New"]


def test_a_paragraph_that_begins_with_from_is_no_border(tmp_path: Path) -> None:
    name = mbox(tmp_path, mail("[PATCH] KVM: Quote", f"\nFrom the SDM, 25.1:\n\n{DIFF}"))
    assert subjects(name) == ["KVM: Quote"]


def test_a_subject_in_several_lines_and_encoded_text(tmp_path: Path) -> None:
    body = DIFF.replace("+b", "+=C3=A4=3D").replace("\n", "=0A=\n")
    encoded = (
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n"
    )
    name = mbox(tmp_path, mail("[PATCH] KVM: A title\n that goes on", body, encoded))
    assert subjects(name) == ["KVM: A title that goes on"]


def test_one_message_as_a_mail_program_saves_it(tmp_path: Path) -> None:
    path = tmp_path / "one.eml"
    path.write_bytes(mail("[PATCH] KVM: Alone").partition("\n")[2].replace("\n", "\r\n").encode())
    assert subjects(str(path)) == ["KVM: Alone"]


@pytest.mark.parametrize(
    ("mails", "expected"),
    [
        ([], "no message in it has a subject with"),
        ([mail("[PATCH] KVM: No diff", "Nothing.\n")], "no message in it"),
        ([mail("[PATCH 1/3] KVM: A"), mail("[PATCH 3/3] KVM: C")], "patch 2 of 3 is not in it"),
        ([mail("[PATCH 1/2000] KVM: A")], "a series of 2000 patches"),
        (
            [mail("[PATCH] KVM: Mine"), mail("[PATCH 1/2] KVM: Rather so"), mail("[PATCH 2/2] KVM: And so")],
            r"1/1 \(KVM: Mine\) and 1/2 \(KVM: Rather so\) are not of one series",
        ),
        ([mail("[PATCH 1/2] KVM: A"), mail("[PATCH 2/2] KVM: B"), mail("[PATCH 2/2] KVM: C")], "not of one series"),
    ],
)
def test_what_is_no_series_is_told_in_one_line(tmp_path: Path, mails: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read_mbox(mbox(tmp_path, *mails))
    assert "\n" not in str(caught.value)


def test_rubbish_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "rubbish"
    for content in (
        b"\0" * 1000,
        b"From \n" * 1000,
        b"From x\nSubject: [PATCH 1/1] \xff\xfe\nContent-Type: text/plain; charset=no\n\n" + DIFF.encode(),
    ):
        path.write_bytes(content)
        try:
            read_mbox(str(path))
        except UserError as error:
            assert "\n" not in str(error)
