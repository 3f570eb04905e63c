"""A port at which connections are refused, and which nobody else takes meanwhile."""

import socket
from typing import Self


class ClosedPort:
    """A port of 127.0.0.1 that is held without listening, until `close`."""

    def __init__(self, port: int = 0) -> None:
        """`port` is to be held, or 0 for any."""
        self._socket = socket.socket()
        # Connections that were there a moment ago do not count.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
