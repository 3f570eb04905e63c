"""A circuit breaker: while a registry is away one fetch asks for all of its layer, and the others wait for its answer.

Each layer has its own for each of its hosts: a blob that is never answered, or a probe of it that hangs, says nothing of
the registry's other blobs.
"""

import trio

from snapshotter.errors import RegistryUnreachable

FAILURES = 3
"""So many failures in a row open the breaker: one or two may be a connection that broke."""

PROBE_EVERY_S = 1.0
"""Between two probes of a host that is away; what a read loses at most when it is back."""


class Breaker:
    """Closed: everybody asks. Open: one probe at a time. Used on the trio thread only."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._failures = 0
        self._probing = False
        self._bulk = False  # whether the probe is a bulk fetch
        self._next_probe = 0.0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def open(self) -> bool:
        """Whether the host is taken to be away."""
        return self._failures >= FAILURES

    async def admit(self, *, patient: bool, bulk: bool = False) -> bool:
        """Return when this fetch may ask the host; True if it is the probe, which must end in one of the three below.

        Those that are not `patient` do not wait for another's probe. The probe of a `bulk` fetch counts among bulk only:
        it has longer to hang than a read has to wait.

        Raises:
            RegistryUnreachable: the host is away, and somebody else is asking whether it still is.
        """
        while self.open:
            free = not self._probing or (self._bulk and not bulk)
            if free and (patient or trio.current_time() >= self._next_probe):
                self._probing, self._bulk = True, bulk
                await self._until_due()
                return True
            if not patient:
                raise RegistryUnreachable(
                    f"registry {self._host} failed {self._failures} times in a row; it is asked again every "
                    f"{PROBE_EVERY_S:.0f} s: check that the node reaches it"
                )
            await self._waiting.park()
        return False

    async def _until_due(self) -> None:
        try:
            await trio.sleep_until(self._next_probe)
        except trio.Cancelled:
            self.given_up()
            raise

    def answered(self) -> None:
        """The host answered, if only to refuse: it is there."""
        self._failures = 0
        self._probing = False
        self._waiting.unpark_all()

    def failed(self, *, probe: bool) -> None:
        """No answer. The next in line asks when it is time."""
        self._failures += 1
        self._next_probe = trio.current_time() + PROBE_EVERY_S
        if probe:
            self.given_up()

    def given_up(self) -> None:
        """The probe was cancelled before it knew."""
        self._probing = False
        self._waiting.unpark(count=1)
