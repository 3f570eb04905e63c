"""containerd's snapshots service: any calls in any order are answered, and leave snapshots that make sense.

The service is the real one with its database and directories, over a plane of plain directories.
"""

import logging
import os
from contextlib import ExitStack

import grpc
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.lazy_layers import Offer
from tests.fuzz.calls import SNAPSHOTS, Call, Caller, Snapshots, calls
from tests.fuzz.rounds import fuzzed
from tests.service.node import Node, scratch
from tests.service.remote_labels import L1, L2, T1, T2


class Faults(logging.Handler):
    """Keeps what was logged with a traceback by our own code."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def test_any_calls_are_answered_and_leave_sound_snapshots() -> None:
    faults = Faults()
    with ExitStack() as undo:
        top = undo.enter_context(scratch())
        node = undo.enter_context(Node(top))
        node.offers |= {L1: Offer(T1), L2: Offer(T2)}
        caller = Caller(undo.enter_context(grpc.insecure_channel(f"unix:{top}/snapshotter.sock")))
        snapshots = Snapshots(caller)
        log = logging.getLogger("snapshotter")
        log.addHandler(faults)
        undo.callback(log.removeHandler, faults)

        @fuzzed(20)
        @given(st.lists(calls(SNAPSHOTS), min_size=3, max_size=20))
        def any_calls(series: list[Call]) -> None:
            snapshots.meet(series)
            assert faults.told == []
            assert os.listdir(top / "r/snapshots") == []
            assert not node.state.layers_in_use()

        any_calls()
