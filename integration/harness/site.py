"""A registry of its own for one image, which can be away in each of the ways in which registries are."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from integration.images.trial import programs
from tests.doubles.closed_port import ClosedPort
from tests.doubles.layers import dir, file, layer
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.relay import Relay

REFUSING, HANGING, FAILING = "refusing", "hanging", "failing"
WAYS = (REFUSING, HANGING, FAILING)
FILES = 40
IMAGE = "away:1"


@dataclass
class Site:
    """A registry behind a door. `away` and `back` may be called in turn."""

    name: str
    server: LoopbackRegistry
    door: Relay
    _way: str = field(default="")
    _closed: ClosedPort | None = field(default=None)

    @property
    def host(self) -> str:
        """Where clients find it: the door's address, also while that is closed."""
        return f"127.0.0.1:{self.door.port}"

    @property
    def reference(self) -> str:
        """The image of this site."""
        return f"{self.host}/{IMAGE}"

    def content(self, number: int) -> bytes:
        """What its `/away/<number>` holds."""
        return random.Random(f"{self.name} {number}").randbytes(20_000 + number)

    def away(self, way: str) -> None:
        """Refuse connections; or take them and never answer what is asked then; or answer nothing but 503."""
        self._way = way
        if way == REFUSING:
            self.door.__exit__(None, None, None)
            self._closed = ClosedPort(self.door.port)
        else:
            self.server.script("", "hang*" if way == HANGING else "503*")

    def back(self) -> None:
        """Answer what is asked from now on."""
        if self._closed is not None:
            self._closed.close()
            self._closed = None
            self.door = Relay("127.0.0.1", self.server.port, at=self.door.port)
            self.door.__enter__()
        elif self._way:
            self.server.script("", "ok")
        self._way = ""


@contextmanager
def site(name: str, mirrored: Site | None = None) -> Iterator[Site]:
    """A running site with its image: the usual programs, and files that no other site has; or what `mirrored` has."""
    with LoopbackRegistry() as server:
        made = Site(mirrored.name if mirrored else name, server, Relay("127.0.0.1", server.port).__enter__())
        try:
            if mirrored:
                server.blobs, server.manifests = mirrored.server.blobs, mirrored.server.manifests
            else:
                files = [file(f"away/{number}", made.content(number)) for number in range(FILES)]
                with RegistryClient(server.url) as client:
                    push_built(client, IMAGE, [layer(*programs()), layer(dir("away"), *files)])
            yield made
        finally:
            made.back()
            made.door.__exit__(None, None, None)
