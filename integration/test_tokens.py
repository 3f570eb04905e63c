"""A registry behind a token server, while tokens end, passwords change and everything is forgotten under an image that is in use."""

import base64
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.conftest import ALONE
from integration.harness.cri import Container
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import PROBE, content, expected, large
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.token_server import TokenServer

USER, PASSWORD = "me", "s3cr3t-password"


@dataclass
class Guarded:
    """A node whose daemon is led by hosts.toml to a registry that wants tokens. containerd asks one that wants none."""

    node: Node
    registry: LoopbackRegistry
    tokens: TokenServer
    config: Path

    def log_in(self, password: str = PASSWORD) -> None:
        """As `docker login` does."""
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        self.config.write_text(json.dumps({"auths": {self.registry.host: {"auth": auth}}}))

    def start(self) -> Container:
        """A container of the image."""
        return self.node.start(self.node.reference("trial:lazy"), "/bin/busybox", "sleep", "1000")

    def problems(self) -> str:
        """What our daemon has said anywhere."""
        return self.node.daemon.log() + json.dumps(self.node.daemon.json("status"))


@pytest.fixture
def guarded(registry: Registry, trial_image: str, plane: str, tmp_path: Path) -> Iterator[Guarded]:
    """With the image trial:lazy pulled, and nothing of it fetched."""
    docker, certs = tmp_path / "docker", tmp_path / "certs"
    docker.mkdir()
    settings = {**ALONE, "registry": {"config_path": [str(certs)]}}
    tokens = TokenServer(users={USER: PASSWORD}, expires_in=300)
    with LoopbackRegistry() as own, tokens, registry.client() as client:
        own.tokens, own.challenge = tokens, tokens.challenge()
        for descriptor in client.manifest("trial", "lazy")["layers"]:
            own.add_blob(client.blob("trial", descriptor["digest"]))
        environ = {"DOCKER_CONFIG": str(docker)}
        with node(registry, settings=settings, plane=plane, environ=environ) as this:
            hosts = certs / this.reference("").partition("/")[0] / "hosts.toml"
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f'server = "{own.url}"\n')
            made = Guarded(this, own, tokens, docker / "config.json")
            made.log_in()
            this.pull(trial_image)
            assert set(this.layer_states(trial_image)) == {"lazy"}
            yield made


def read(box: Container, name: str) -> str:
    """What the probe says of a file below /outage; if nothing, how it ended."""
    answer = box.exec([PROBE, "read", f"/outage/{name}"])
    return answer.stdout or str(answer)


def small(number: int) -> str:
    """What the probe has to say of one."""
    return expected(content("outage", number))


def test_tokens_that_end_in_mid_life_are_replaced_and_no_reader_sees_it(guarded: Guarded) -> None:
    box = guarded.start()
    for number in range(3):
        given = len(guarded.tokens.requests)
        guarded.tokens.revoke()
        assert read(box, str(number)) == small(number)
        assert len(guarded.tokens.requests) > given
    guarded.tokens.expires_in = 1
    guarded.tokens.revoke()
    assert read(box, "large") == expected(large("outage"))
    given = len(guarded.tokens.requests)
    time.sleep(1.1)
    assert read(box, "3") == small(3)
    assert len(guarded.tokens.requests) > given
    assert PASSWORD not in guarded.problems()


def test_what_is_on_the_node_needs_no_credentials_and_the_rest_says_that_it_does(guarded: Guarded) -> None:
    box = guarded.start()
    assert read(box, "0") == small(0)
    guarded.config.unlink()
    guarded.tokens.users[USER] = "another"
    guarded.tokens.revoke()
    assert read(box, "0") == small(0)
    assert read(box, "1") in {"open EIO\n", "read EIO\n"}
    guarded.node.restart_snapshotter(signal.SIGKILL)
    refused = len(guarded.registry.requests)
    box = guarded.start()
    assert read(box, "0") == small(0)
    assert box.exec(["/bin/busybox", "sh", "-c", "ls -l /outage | wc -l; echo new > /tmp/x; cat /tmp/x"]).exit_code == 0
    assert len(guarded.registry.requests) == refused
    assert read(box, "1") in {"open EIO\n", "read EIO\n"}
    assert "the login is still valid" in guarded.problems()
    # The daemon goes on: whoever logs in need not restart it.
    guarded.log_in("another")
    wait_for(lambda: read(box, "1") == small(1), "content for the new password", 30)
