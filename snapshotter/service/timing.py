"""How long each call took and how it ended, told to whoever counts that."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc

Observe: TypeAlias = Callable[[str, str, float], None]
"""Called with method (`Snapshots/Prepare`), gRPC code (`OK`, `NOT_FOUND`, …) and seconds, from the call's own thread."""

_SERVICES = ("containerd.services.snapshots.v1.", "estargz.control.v1.")


class CallTimer(grpc.ServerInterceptor):  # type: ignore[type-arg]  # at run time it takes none
    """Times the calls of our two services. Calls of methods that nobody registered, and of the health service, are none."""

    def __init__(self, observe: Observe, clock: Callable[[], float] = time.monotonic) -> None:
        self._observe = observe
        self._clock = clock

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler of one call."""
        handler = continuation(handler_call_details)
        name = handler_call_details.method.lstrip("/")
        package = next(filter(name.startswith, _SERVICES), None)
        if handler is None or package is None or handler.request_streaming:
            return handler
        method = name.removeprefix(package)
        make, behavior = (
            (grpc.unary_stream_rpc_method_handler, self._stream(method, handler.unary_stream))
            if handler.response_streaming
            else (grpc.unary_unary_rpc_method_handler, self._single(method, handler.unary_unary))
        )
        return make(behavior, handler.request_deserializer, handler.response_serializer)

    def _single(self, method: str, answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def timed(request: Any, context: Any) -> Any:
            began = self._clock()
            ended = False
            try:
                response = answer(request, context)
                ended = True
                return response
            finally:
                self._observe(method, _code(context, ended=ended), self._clock() - began)

        return timed

    def _stream(self, method: str, answer: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        def timed(request: Any, context: Any) -> Iterator[Any]:
            began = self._clock()
            ended = False
            try:
                yield from answer(request, context)
                ended = True
            finally:
                self._observe(method, _code(context, ended=ended), self._clock() - began)

        return timed


def _code(context: Any, *, ended: bool) -> str:
    """The word for how a call ended."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    if ended:
        return "OK"
    # gRPC makes an exception UNKNOWN; a caller that has gone is why a stream is given up.
    return "UNKNOWN" if context.is_active() else "CANCELLED"
