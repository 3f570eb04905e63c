"""A real daemon: any calls of every service on its socket are answered, and it is none the worse for them."""

from contextlib import ExitStack

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from hypothesis import given
from hypothesis import strategies as st

from integration.harness.daemon import Daemon, Table
from integration.harness.scratch import scratch
from snapshotter.api import control_pb2 as pb
from tests.fuzz.calls import SNAPSHOTS, Call, Caller, Snapshots, calls
from tests.fuzz.rounds import fuzzed

CONTROL: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Control"]

SETTINGS: Table = {"lazy": {"resolve_timeout_s": 1.0}, "registry": {"plain_http": ["127.0.0.1:1"], "retries": 0}}

ENDS_IT = frozenset({"Teardown"})


def test_any_calls_are_answered_by_a_daemon_that_goes_on() -> None:
    with ExitStack() as undo:
        place = undo.enter_context(scratch())
        daemon = Daemon(place / "daemon", SETTINGS)
        undo.callback(daemon.stop)
        daemon.start()
        pid = daemon.process.pid
        caller = Caller(undo.enter_context(grpc.insecure_channel(f"unix:{daemon.address}")))
        snapshots = Snapshots(caller)

        @fuzzed(20)
        @given(st.lists(calls(CONTROL, ENDS_IT) | calls(SNAPSHOTS), min_size=1, max_size=8))
        def any_calls(series: list[Call]) -> None:
            snapshots.meet(series)
            assert daemon.process.running

        any_calls()
        status = daemon.json("status")
        assert (status["pid"], status["problems"], status["snapshots"]) == (pid, [], 0)
        assert "Traceback" not in daemon.log()
        # Whatever else it is sent, this ends it, with nothing left mounted: the scratch folder would say so.
        teardown = CONTROL.methods_by_name["Teardown"]
        code, said, answers = caller.ask(teardown, pb.TeardownRequest(force=True).SerializeToString() + b"\xf8\x07\x01")
        assert (code, [answer.done for answer in answers]) == (grpc.StatusCode.OK, [True]), said
