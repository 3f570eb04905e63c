"""Containers that come and go on one node, and images with them."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

import grpc

from integration.harness.cri import Container
from integration.harness.node import Node
from integration.soak.images import SoakImage
from integration.soak.ledger import Ledger
from integration.soak.plan import Plan

PATIENCE_S = 120.0
"""So long a call is repeated while the daemon comes and goes, and a container may take longer than it meant to."""

PAUSE_S = 0.3
REMOVAL_SHARE = 0.4
ANYTHING = TypeVar("ANYTHING")


class Crew:
    """The containers of one node. `undisturbed`: no call may fail."""

    def __init__(
        self,
        name: str,
        node: Node,
        images: Sequence[SoakImage],
        ledger: Ledger,
        *,
        plan: Plan,
        undisturbed: bool,
    ) -> None:
        self.name = name
        self._node = node
        self._images = images
        self._ledger = ledger
        self._plan = plan
        self._undisturbed = undisturbed
        self._numbers = count(1)
        # Guards the users of each image: nobody removes one that somebody pulls or runs.
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()

    def run(self, slot: int, stop: threading.Event) -> None:
        """One container after the other until `stop`; the last one is waited for."""
        dice = random.Random(f"{self._plan.seed} {self.name} {slot}")
        bag: list[SoakImage] = []
        while not stop.is_set():
            # Each as often as the others, so that one part of the soak does not differ from another by chance.
            bag = bag or dice.sample(self._images, len(self._images))
            image = bag.pop()
            with self._using(image):
                self._live(image, dice, stop)
            if dice.random() < REMOVAL_SHARE:
                self._remove_image(image)

    def _live(self, image: SoakImage, dice: random.Random, stop: threading.Event) -> None:
        seconds = dice.uniform(0.2, 1.0) * self._plan.life_s
        seed = dice.randrange(1 << 32)
        pulled = self._patiently("pull", lambda: self._node.pull(image.name), stop)
        if pulled is None:
            return
        command = image.command(round(seconds, 1), seed, self._plan.pace_ms)
        container = self._patiently("start", lambda: self._started(pulled, command), stop)
        if container is None:
            return
        self._ledger.count("containers")
        where = f"{self.name}: {image.name} with seed {seed}"
        if self._waited(container, seconds, where):
            self._judge(container, where)
        self._patiently("remove", lambda: _done(container.remove), None)

    def _started(self, image: str, command: Sequence[str]) -> Container:
        """A container that runs; one that could not start leaves nothing."""
        container = self._node.sandbox().create(f"soak-{next(self._numbers)}", image, command)
        try:
            container.start()
        except grpc.RpcError:
            self._patiently("remove", lambda: _done(container.remove), None)
            raise
        return container

    def _waited(self, container: Container, seconds: float, where: str) -> bool:
        deadline = time.monotonic() + seconds + PATIENCE_S
        while not container.ended():
            if time.monotonic() > deadline:
                self._ledger.fault(where, f"hangs: {PATIENCE_S:.0f} s after it should have ended it is still there")
                return False
            time.sleep(PAUSE_S)
        return True

    def _judge(self, container: Container, where: str) -> None:
        output = container.output()
        lines = output.stdout.splitlines()
        for line in (line for line in lines if not line.startswith("done ")):
            self._ledger.fault(where, line)
        if output.stderr:
            self._ledger.fault(where, output.stderr.strip())
        done = lines[-1].split() if lines else []
        if done[:1] != ["done"]:
            self._ledger.fault(where, f"ended with {output.exit_code} before its time; it said {lines[-3:]}")
            return
        _, actions, verified, faults, waits, worst_s = done
        if faults == "0" and output.exit_code:
            self._ledger.fault(where, f"ended with {output.exit_code} and found no fault")
        self._ledger.count("actions", int(actions))
        self._ledger.count("bytes verified", int(verified))
        self._ledger.count("calls that took over 0.1 s", int(waits))
        self._ledger.worst(f"longest call of a container on {self.name}, s", float(worst_s))

    def _patiently(self, what: str, call: Callable[[], ANYTHING], stop: threading.Event | None) -> ANYTHING | None:
        """Do as kubelet does: repeat what failed. None if `stop` came first, or it never worked, which is a fault."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                words = str(error.details() if isinstance(error, grpc.Call) else error)
                if self._undisturbed:
                    self._ledger.fault(self.name, f"{what} failed on a node that nobody disturbs: {words}")
                self._ledger.refusal(what, words)
                if time.monotonic() > deadline:
                    self._ledger.fault(self.name, f"{what} still fails after {PATIENCE_S:.0f} s: {words}")
                    return None
            if stop is not None and stop.is_set():
                return None
            time.sleep(PAUSE_S)

    @contextmanager
    def _using(self, image: SoakImage) -> Iterator[None]:
        with self._lock:
            self._users[image.name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[image.name] -= 1

    def _remove_image(self, image: SoakImage) -> None:
        with self._lock:
            if not self._users[image.name]:
                reference = self._node.reference(image.name)
                self._patiently("image removal", lambda: _done(self._node.remove_image, reference), None)
                self._ledger.count("image removals")


def _done(call: Callable[..., None], *args: str) -> bool:
    """Call it and say that it was done: what is done patiently has a result."""
    call(*args)
    return True
