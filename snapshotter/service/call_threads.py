"""Threads for gRPC calls, none of which stays with a client that does not go on.

grpc gives each call a thread of one pool as soon as its headers are here. A client that sends no request after them, or
does not read a stream, would hold it for ever, and some dozens of such calls every call of containerd [tried]. So it is
noted who waits for its client: such a call is cancelled after a while, and at once, the oldest first, when others wait
for a thread.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import grpc
from google.protobuf.message import DecodeError

PATIENCE_S = 60.0
"""So long a client may take to send its request, or to read the next message of a stream."""

HURRY_S = 0.25
"""So long it may take while calls wait for a thread, unless it is our side that is late."""

P = ParamSpec("P")
T = TypeVar("T")


class CallThreads(ThreadPoolExecutor):
    """The pool, and the calls in it that wait for their clients; `close` ends its watch."""

    def __init__(self, workers: int, patience_s: float = PATIENCE_S, hurry_s: float = HURRY_S) -> None:
        super().__init__(workers, thread_name_prefix="grpc")
        self._workers = workers
        self._patience_s = patience_s
        self._hurry_s = hurry_s
        # Guards the fields below; told when more calls than threads are there, and at the end.
        self._changed = threading.Condition()
        self._calls = 0
        self._waiting: dict[object, tuple[float, grpc.ServicerContext]] = {}
        self._served_at = self._served_since = 0.0
        self._closed = False
        self._watch = threading.Thread(target=self._look_after, name="grpc-watch", daemon=True)

    def begin(self) -> None:
        """Look after the calls from now on."""
        self._watch.start()

    def close(self) -> None:
        """Look after them no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the base class."""
        with self._changed:
            self._calls += 1
            if self._calls > self._workers:
                self._changed.notify_all()
        try:
            future = super().submit(fn, *args, **kwargs)
        except RuntimeError:
            self._ended(None)
            raise
        future.add_done_callback(self._ended)
        return future

    @contextmanager
    def waiting(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Around each wait of a call for its client."""
        turn = object()
        since = time.monotonic()
        with self._changed:
            self._waiting[turn] = since, context
        try:
            yield
        finally:
            with self._changed:
                if self._waiting.pop(turn, None):
                    self._served_at = time.monotonic()
                    self._served_since = max(self._served_since, since)

    def _ended(self, _: "Future[Any] | None") -> None:
        with self._changed:
            self._calls -= 1

    def _look_after(self) -> None:
        while True:
            with self._changed:
                crowded = self._calls > self._workers
                # Between two looks those who were cancelled end, and make the room that was wanted.
                if crowded:
                    self._changed.wait_for(lambda: self._closed, self._hurry_s)
                else:
                    self._changed.wait(self._patience_s / 4)
                if self._closed:
                    return
                late = self._late()
            for context in late:
                context.cancel()  # type: ignore[no-untyped-call]

    def _late(self) -> list[grpc.ServicerContext]:
        """Take out the calls whose clients have had their time, in the order in which they began to wait."""
        now = time.monotonic()
        turns = [turn for turn, (since, _) in self._waiting.items() if since < now - self._patience_s]
        if (short := self._calls - self._workers) > 0:
            # grpc hands on what arrives in one thread, in order. While that is behind, everybody's request is late; not
            # so late as one that somebody has overtaken.
            idle = self._served_at < now - self._hurry_s
            overtaken = (now if idle else self._served_since) - self._hurry_s
            hurried = (turn for turn, (since, _) in self._waiting.items() if since < overtaken)
            turns = list(dict.fromkeys((*turns, *islice(hurried, short))))
        return [self._waiting.pop(turn)[1] for turn in turns]


class ClientsAwaited(grpc.ServerInterceptor):  # type: ignore[type-arg]  # at run time it takes none
    """Notes in `threads` which calls wait for their clients.

    For that it takes a call's one request as a stream of one: there is no difference on the wire, but grpc hands the call
    over before the request is here.
    """

    def __init__(self, threads: CallThreads) -> None:
        self._threads = threads

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler of one call."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(self._single(handler), None, handler.response_serializer)
        # The health service's Watch, which takes no thread while nothing changes.
        passive = getattr(handler.unary_stream, "experimental_non_blocking", False)
        behavior = self._passive(handler) if passive else self._stream(handler)
        return grpc.stream_stream_rpc_method_handler(behavior, None, handler.response_serializer)

    def _request(self, handler: Any, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        with self._threads.waiting(context):
            message = next(messages, None)
        if message is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")
        try:
            return handler.request_deserializer(message)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not a message of this method")

    def _single(self, handler: Any) -> Callable[[Iterator[bytes], Any], Any]:
        def attended(messages: Iterator[bytes], context: Any) -> Any:
            return handler.unary_unary(self._request(handler, messages, context), context)

        return attended

    def _stream(self, handler: Any) -> Callable[[Iterator[bytes], Any], Iterator[Any]]:
        def attended(messages: Iterator[bytes], context: Any) -> Iterator[Any]:
            for answer in handler.unary_stream(self._request(handler, messages, context), context):
                with self._threads.waiting(context):
                    yield answer

        return attended

    def _passive(self, handler: Any) -> Callable[[Iterator[bytes], Any, Callable[[Any], None]], Any]:
        def attended(messages: Iterator[bytes], context: Any, send: Callable[[Any], None]) -> Any:
            return handler.unary_stream(self._request(handler, messages, context), context, send)

        attended.experimental_non_blocking = True  # type: ignore[attr-defined]
        return attended
