"""Calls of any service with any values in any field, and what must be true of the snapshots afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.service.labels import PREFETCH, SKIP_VERIFY, SNAPSHOT_REF, TOC_DIGEST
from tests.fuzz.mutations import TEXTS
from tests.service.remote_labels import CRI, L1, L2, MANIFEST, T1

TIMEOUT_S = 120.0

ANSWERS = frozenset({
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
})  # fmt: skip
"""What a service may say to a call that makes no sense. UNKNOWN and INTERNAL are what it says of its own faults."""

NAMES = ("a", "b", "c", "d", "default/1/extract-1-abcd c1", "")
"""Few, so that calls meet; some are there from the beginning."""

OFTEN = frozenset({"Prepare", "Commit"})
"""Methods that make something for the others to find."""

REFERENCE = "127.0.0.1:1/app:1"
"""A registry that nobody is."""

FILTERS = (
    *(
        "",
        "name==a",
        "parent==a",
        "kind==committed",
        "labels.x",
        'labels."x"==y',
        "name~=.*",
        "name~=(",
        'labels."\\xff"',
    ),
    *(
        "name==a,parent!=b",
        "!",
        "==",
        "name==",
        'name=="',
        "a.b.c.d",
        "name~=" + "(" * 300,
        "labels.x~='[a'",
        "*",
        "\0==\0",
    ),
)
PATHS = ("labels", "labels.x", "labels.", "name", "", ".", "labels.containerd.io/snapshot.ref", "kind", "created_at")
KEYS = (
    "x",
    SNAPSHOT_REF,
    TOC_DIGEST,
    PREFETCH,
    SKIP_VERIFY,
    *(CRI + one for one in ("image-ref", "layer-digest", "image-layers")),
)
SOUND = {
    SNAPSHOT_REF: "c1", CRI + "image-ref": REFERENCE, CRI + "layer-digest": L1, CRI + "manifest-digest": MANIFEST,
    CRI + "image-layers": f"{L1},{L2}", TOC_DIGEST: T1,
}  # fmt: skip

TEXT = st.sampled_from(NAMES) | st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FEW = st.sampled_from(NAMES)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "key": FEW | FEW | FEW | FEW | FEW | TEXT,
    "name": FEW | FEW | FEW | FEW | FEW | TEXT,
    "parent": st.just("") | st.just("") | st.just("a") | st.just("a") | FEW | TEXT,
    "filters": st.lists(st.sampled_from(FILTERS) | TEXT, max_size=2),
    "paths": st.lists(st.sampled_from(PATHS) | TEXT, max_size=3),
    "labels": st.just({})
    | st.just({})
    | st.just(SOUND)
    | st.dictionaries(st.sampled_from(KEYS) | TEXT, TEXT, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), TEXT, max_size=2).map(lambda more: {**SOUND, **more}),
}
INTEGERS = st.sampled_from((0, 1, -1, (1 << 31) - 1, -(1 << 31)))


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """One request to a method, as bytes; `decodes` says whether they are the message that the method takes."""

    method: MethodDescriptor
    request: bytes
    namespace: str
    decodes: bool = True

    def __repr__(self) -> str:
        if not self.decodes:
            return f"{self.method.name}({self.request!r})"
        message = message_factory.GetMessageClass(self.method.input_type).FromString(self.request)
        return f"{self.method.name}({str(message)!r}, {self.namespace!r})"


@st.composite
def calls(draw: st.DrawFn, service: ServiceDescriptor, without: frozenset[str] = frozenset()) -> Call:
    """A call of one of the methods; sometimes with fields that nobody knows, or with bytes that are no message."""
    methods = [method for method in service.methods if method.name not in without]
    methods += [method for method in methods if method.name in OFTEN] * 4
    method = methods[draw(st.integers(0, len(methods) - 1))]
    data = draw(_message(method.input_type)).SerializeToString()
    kind = draw(st.sampled_from(("sound",) * 8 + ("unknown", "garbage")))
    if kind == "unknown":
        data += b"\xfa\x3f\x03abc\xf8\x07\x01"  # fields 1023 and 127
    elif kind == "garbage":
        data += draw(st.binary(min_size=1, max_size=10))
    namespace = draw(st.sampled_from(("default", "k8s.io", "", "a b", "/" * 300)))
    return Call(method, data, namespace, decodes=kind != "garbage" or _decodes(method.input_type, data))


def _decodes(kind: Descriptor, data: bytes) -> bool:
    try:
        message_factory.GetMessageClass(kind).FromString(data)
    except Exception:  # noqa: BLE001 (each implementation of protobuf has an error of its own)
        return False
    return True


@st.composite
def _message(draw: st.DrawFn, kind: Descriptor) -> Message:
    values = {field.name: draw(_value(field)) for field in kind.fields if draw(st.integers(0, 5))}
    return message_factory.GetMessageClass(kind)(**values)


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.name in BY_NAME:
        return BY_NAME[field.name]
    if field.message_type is not None:
        return _message(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXT
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(0, 5)
    if field.type == FieldDescriptor.TYPE_INT64:
        return INTEGERS | st.sampled_from(((1 << 63) - 1, -(1 << 63)))
    return INTEGERS


class Caller:
    """Sends requests as bytes and gives statuses back."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def send(self, call: Call) -> grpc.StatusCode:
        """The status of a call. Of a stream all is read."""
        code, said = self.ask(call.method, call.request, call.namespace)[:2]
        if not call.decodes:
            assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{call!r}: {code}: {said}"
            return code
        assert code in ANSWERS, f"{call!r}: {code}: {said}"
        return code

    def ask(
        self, method: MethodDescriptor, request: bytes, namespace: str = ""
    ) -> tuple[grpc.StatusCode, str, list[Any]]:
        """Status, its words, and the messages that came."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = message_factory.GetMessageClass(method.output_type).FromString
        # A call with one answer is a stream of one.
        stream = self._channel.unary_stream(path, request_serializer=None, response_deserializer=answer)
        received: list[Any] = []
        answers = stream(request, metadata=(("containerd-namespace", namespace),), timeout=TIMEOUT_S)
        with suppress(grpc.RpcError):  # what it says is asked below
            received.extend(answers)
        return answers.code(), answers.details() or "", received


SNAPSHOTS: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Snapshots"]


class Snapshots:
    """The snapshots behind a channel, as they are."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def _ask(self, name: str, request: Message) -> list[Any]:
        code, said, answers = self._caller.ask(SNAPSHOTS.methods_by_name[name], request.SerializeToString())
        assert code is grpc.StatusCode.OK, f"{name}({request}): {code}: {said}"
        return answers

    def all(self) -> Iterator[pb.Info]:
        """Every snapshot."""
        for answer in self._ask("List", pb.ListSnapshotsRequest()):
            yield from answer.info

    def meet(self, series: Iterable[Call]) -> None:
        """Send calls to some snapshots, see that what is left is sound, and remove it."""
        try:
            self.furnish()
            for call in series:
                self._caller.send(call)
            self.check()
        finally:
            self.remove_all()

    def furnish(self) -> None:
        """Make some for the calls to meet: `a` is committed, `b` active and `c` a view on it."""
        self._ask("Prepare", pb.PrepareSnapshotRequest(key="b"))
        self._ask("Commit", pb.CommitSnapshotRequest(name="a", key="b"))
        self._ask("Prepare", pb.PrepareSnapshotRequest(key="b", parent="a"))
        self._ask("View", pb.ViewSnapshotRequest(key="c", parent="a"))

    def check(self) -> None:
        """Each can be asked for, parents are committed and there, active ones have mounts."""
        found = {info.name: info for info in self.all()}
        for name, info in found.items():
            assert info.parent == "" or found[info.parent].kind == pb.COMMITTED
            (stat,) = self._ask("Stat", pb.StatSnapshotRequest(key=name))
            assert stat.info == info
            self._ask("Usage", pb.UsageRequest(key=name))
            if info.kind != pb.COMMITTED:
                (answer,) = self._ask("Mounts", pb.MountsRequest(key=name))
                assert answer.mounts

    def remove_all(self) -> None:
        """Remove all, children first, and clean up."""
        while found := list(self.all()):
            parents = {info.parent for info in found}
            for info in found:
                if info.name not in parents:
                    self._ask("Remove", pb.RemoveSnapshotRequest(key=info.name))
        self._ask("Cleanup", pb.CleanupRequest())
