"""The whole examination: every group, from the kernel to the registry."""

from collections.abc import Iterator

from snapshotter.doctor import clock, installation, kernel, planes, service, sharing
from snapshotter.doctor.containerd import Containerd
from snapshotter.doctor.examination import Once, examine
from snapshotter.doctor.findings import Check, Finding
from snapshotter.doctor.registry import Images
from snapshotter.doctor.subject import Subject


def examination(subject: Subject) -> Iterator[Finding]:
    """Yield every finding about `subject`, group by group, each as soon as it is there."""
    return examine(_checks(subject), subject.timeout_s)


def _checks(subject: Subject) -> Iterator[Check]:
    status = Once(subject.daemon.status)
    containerd = Containerd(subject)
    yield from kernel.checks(subject)
    yield from planes.checks(subject, status)
    yield from sharing.checks(subject, status, containerd.pid)
    yield from installation.checks(subject)
    yield from service.checks(subject, status)
    yield from clock.checks(subject)
    # Which images there are is asked no earlier: a daemon that hangs has been told of by now.
    images = Images(subject, status)
    yield from images.clock_checks()
    yield from containerd.checks()
    yield from images.checks()
