import signal
import subprocess
import sys
import threading
import time

import pytest

from snapshotter.doctor.examination import Once, examine
from snapshotter.doctor.findings import (
    MUST_BE_MENDED,
    Answer,
    Check,
    Finding,
    Group,
    Verdict,
    exit_code,
    fault,
    of_error,
    ok,
    warning,
)
from snapshotter.errors import ContainerdUnreachable, SnapshotterError
from tests.doctor.world import failing

HANGS_S = 3
"""What answers at once does so within this time also where other work holds the machine up."""


def found(*checks: Check, timeout_s: float = 10.0) -> list[Finding]:
    return list(examine(checks, timeout_s))


def test_findings_come_in_the_order_of_the_checks_with_their_names() -> None:
    first = Check(Group.KERNEL, "one", lambda: [ok("a"), ok("b", name="other")], "about")
    second = Check(Group.CLOCK, "two", lambda: [ok("c")])
    assert [(one.group, one.about, one.name, one.found) for one in found(first, second)] == [
        (Group.KERNEL, "about", "one", "a"),
        (Group.KERNEL, "about", "other", "b"),
        (Group.CLOCK, "", "two", "c"),
    ]


@pytest.mark.parametrize(
    ("error", "verdict", "words"),
    [
        (ValueError("odd"), Verdict.WARNING, "ValueError: odd"),
        (PermissionError(13, "Permission denied", "/secret"), Verdict.SKIPPED, "/secret"),
        (OSError(5, "Input/output error", "/disk"), Verdict.FAULT, "/disk"),
        (ContainerdUnreachable("nobody is there; start it"), Verdict.FAULT, "nobody is there"),
    ],
)
def test_an_exception_in_a_check_is_its_answer_and_ends_no_other(
    error: Exception, verdict: Verdict, words: str
) -> None:
    broken, fine = found(Check(Group.KERNEL, "broken", failing(error)), Check(Group.KERNEL, "fine", lambda: [ok("")]))
    assert broken.verdict is verdict
    assert words in broken.found
    assert broken.advice
    assert fine.verdict is Verdict.OK


def test_a_check_that_hangs_is_a_fault_and_the_others_go_on() -> None:
    hold = threading.Event()
    try:
        hangs, fine = found(
            Check(Group.KERNEL, "hangs", lambda: [ok(str(hold.wait(60)))]),
            Check(Group.KERNEL, "fine", lambda: [ok("")]),
            timeout_s=HANGS_S,
        )
    finally:
        hold.set()
    assert hangs.verdict is Verdict.FAULT
    assert f"no answer within {HANGS_S} s" in hangs.found
    assert fine.verdict is Verdict.OK


def test_findings_are_there_before_later_checks_begin() -> None:
    began: list[str] = []

    def later() -> list[Answer]:
        began.append("later")
        return [ok("")]

    checks = Check(Group.KERNEL, "first", lambda: [ok("")]), Check(Group.KERNEL, "later", later)
    findings = iter(examine(checks, 10.0))
    assert next(findings).name == "first"
    assert began == []
    assert next(findings).name == "later"


def test_an_interrupted_check_may_tidy_up() -> None:
    program = (
        "import signal, threading, time\nfrom snapshotter.doctor import examination\n"
        "from snapshotter.doctor.findings import Check, Group, ok\n"
        "came = threading.Event()\n"
        "def interrupt(*_):\n    came.set()\n    raise KeyboardInterrupt\n"
        "def look():\n    print('began', flush=True)\n    came.wait()\n    time.sleep(0.5)\n"
        "    print('tidied', flush=True)\n    return [ok('')]\n"
        "signal.signal(signal.SIGINT, interrupt)\n"
        "examination.GRACE_S = 60.0\n"
        "list(examination.examine([Check(Group.KERNEL, 'x', look)], 60.0))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"began\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == b"tidied\n"
    assert child.returncode != 0


def test_a_fact_is_asked_for_once_and_its_error_is_remembered() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        raise SnapshotterError("no")

    fact = Once(ask)
    for _ in range(2):
        with pytest.raises(SnapshotterError, match="no"):
            fact.get()
    assert len(asked) == 1
    assert Once(lambda: 5).get() == 5


def test_a_fact_that_hangs_holds_up_the_first_who_asks_alone() -> None:
    hold, began = threading.Event(), threading.Event()

    def ask() -> bool:
        began.set()
        return hold.wait(60)

    fact = Once(ask)
    first = threading.Thread(target=fact.get)
    first.start()
    try:
        assert began.wait(10)
        before = time.monotonic()
        with pytest.raises(SnapshotterError):
            fact.get()
        assert time.monotonic() - before < 30
    finally:
        hold.set()
        first.join()
    assert fact.get() is True


@pytest.mark.parametrize(
    ("verdict", "lenient", "strict"),
    [
        (Verdict.OK, 0, 0),
        (Verdict.NOTE, 0, 0),
        (Verdict.SKIPPED, 0, 0),
        (Verdict.WARNING, 0, MUST_BE_MENDED),
        (Verdict.FAULT, MUST_BE_MENDED, MUST_BE_MENDED),
    ],
)
def test_the_exit_code_is_that_of_the_worst_finding(verdict: Verdict, lenient: int, strict: int) -> None:
    findings = [Finding(Group.KERNEL, "", "x", one, "", "") for one in (Verdict.OK, verdict)]
    assert exit_code(findings, strict=False) == lenient
    assert exit_code(findings, strict=True) == strict


def test_an_error_gives_what_it_says_behind_its_last_semicolon_as_what_to_do() -> None:
    answer = of_error(SnapshotterError("a; b; do this"), "other")
    assert (answer.found, answer.advice) == ("a; b", "do this")
    answer = of_error(SnapshotterError("nothing to do about it"), "other")
    assert (answer.found, answer.advice) == ("nothing to do about it", "other")


def test_warnings_and_faults_always_say_what_to_do() -> None:
    assert warning("x", "do").advice == fault("x", "do").advice == "do"
