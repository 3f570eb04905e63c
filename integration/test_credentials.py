"""A private registry and a credential helper, while passwords change and the helper fails under an image that is in use."""

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.conftest import ALONE
from integration.harness.containerd import CommandFailed
from integration.harness.node import LAZY_ALIAS, Node, node, running_registry
from integration.harness.process import wait_for
from integration.images.dialects import push_built
from integration.images.trial import PROBE, expected, programs
from tests.doubles.layers import dir, file, layer
from tests.registry.programs import Environ, asked, gives, helper, make_environ

IMAGE = "private:lazy"
FIRST, SECOND, THIRD = "s3cr3t-first", "s3cr3t-second", "s3cr3t-third"


# Far from each other and from the end of the blob: none comes with another, nor with the TOC.
FILES = 24
EARLY, LATE = 4, 14


def data(number: int) -> bytes:
    """What `d/<number>` holds."""
    return random.Random(number).randbytes(1 << 20)


@pytest.fixture
def environ(tmp_path: Path) -> Environ:
    """Our daemon's environment: where its helpers are, and the config.json that names one."""
    made = make_environ(tmp_path)
    return {**made, "PATH": f"{made['PATH']}:{os.environ['PATH']}", "DOCKER_CONFIG": str(tmp_path)}


@pytest.fixture
def private(termination: None, environ: Environ) -> Iterator[Node]:
    """A node whose registry lets in nobody but `me`; our daemon has the password from a helper."""
    with running_registry() as registry:
        with registry.client() as client:
            push_built(client, IMAGE, [layer(*programs(), dir("d"), *(file(f"d/{n}", data(n)) for n in range(FILES)))])
        registry.admit({"me": FIRST})
        gives(environ, FIRST)
        with node(registry, settings=ALONE, environ=environ) as made:
            host = made.reference(IMAGE).partition("/")[0]
            config = {"credHelpers": {host: "site"}, "credsStore": "of-another-machine"}
            Path(environ["DOCKER_CONFIG"], "config.json").write_text(json.dumps(config))
            yield made


def pull(private: Node, password: str) -> str:
    """Pull with what containerd is told, which it does not tell us; return the reference."""
    reference = private.reference(IMAGE)
    login = ("--user", f"me:{password}")
    private.ctr(program="ctr-remote")("images", "rpull", "--plain-http", *login, "--snapshotter", LAZY_ALIAS, reference)
    return reference


def read(private: Node, reference: str, number: int) -> str:
    """What a container says of a file that nobody has read before."""
    command = (PROBE, "read", f"/d/{number}")
    ctr = private.ctr()
    return ctr.run(reference, f"read-{number}", command, snapshotter=LAZY_ALIAS, cgroup=private.place.name)


def problems(private: Node) -> str:
    """What our daemon says an admin should look at."""
    return "\n".join(private.daemon.json("status")["problems"])


def told(private: Node) -> list[str]:
    """Passwords that our daemon has shown anywhere."""
    text = private.daemon.log() + json.dumps(private.daemon.json("status"))
    return [secret for secret in (FIRST, SECOND, THIRD) if secret in text]


def test_content_is_read_on_with_the_new_password_after_a_change_in_mid_life(private: Node, environ: Environ) -> None:
    reference = pull(private, FIRST)
    assert "lazy" in private.layer_states(IMAGE)
    assert read(private, reference, EARLY) == expected(data(EARLY))
    private.registry.admit({"me": SECOND})
    gives(environ, SECOND)
    assert read(private, reference, LATE) == expected(data(LATE))
    host = reference.partition("/")[0]
    assert asked(environ) == [f"get {host}"] * 2
    assert problems(private) == ""
    assert told(private) == []


def test_readers_wait_for_a_helper_that_fails_and_status_says_what_it_complains_of(
    private: Node, environ: Environ
) -> None:
    reference = pull(private, FIRST)
    assert read(private, reference, EARLY) == expected(data(EARLY))
    private.registry.admit({"me": THIRD})
    helper(environ, f"echo no route to the vault, Secret={THIRD} >&2; exit 1")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(read, private, reference, LATE)
        try:
            wait_for(lambda: "no route to the vault" in problems(private), "the helper's complaint in the status")
            assert "ended with 1 when asked for" in problems(private)
            assert not waiting.done()
        finally:
            gives(environ, THIRD)
        assert waiting.result() == expected(data(LATE))
    assert told(private) == []


def test_an_image_whose_helper_is_missing_is_pulled_whole_and_the_log_says_why(private: Node, environ: Environ) -> None:
    Path(environ["PATH"].partition(":")[0], "docker-credential-site").unlink()
    reference = pull(private, FIRST)
    assert set(private.layer_states(IMAGE)) == {"ordinary"}
    assert "docker-credential-site's to give, which is not on the PATH" in private.daemon.log()
    assert read(private, reference, EARLY) == expected(data(EARLY))
    with pytest.raises(CommandFailed, match=r"401|[Aa]uthorization"):
        pull(private, SECOND)
