"""Both ends of a piece of work, opened and closed."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import ConfigError, SnapshotterError
from snapshotter.image.places.location import parse_location
from snapshotter.image.places.opening import open_places
from snapshotter.registry.client import Registry
from tests.image.images import Image
from tests.image.places import TARS, access, between, copier, docker_tar, oci_members, read_back, saved, tar_of

SMALL = (b"a layer", b"another layer")


@pytest.mark.parametrize("target", ["host.org/x", "containerd:x", "docker-archive:x.tar:x"])
def test_nothing_can_be_written_under_a_digest(target: str, tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    with pytest.raises(ConfigError, match="not known before it is written"):
        between(source, f"{target}@sha256:{'0' * 64}", copier(tmp_path))


def test_registries_that_are_named_speak_no_tls_if_that_is_said(tmp_path: Path) -> None:
    seen = []

    async def main() -> None:
        with patch("snapshotter.image.places.opening.Registry", wraps=Registry) as made:
            source = parse_location(Image(*TARS).lay_out(tmp_path / "a"))
            async with open_places(source, parse_location("host.org:5000/x:v1"), access()):
                seen.append(made.call_args.args[0].plain_http)
            async with open_places(parse_location("other.org/y"), None, access()) as (_, nothing):
                assert nothing is None
                seen.append(made.call_args.args[0].plain_http)

    trio.run(main)
    assert seen == [("host.org:5000",), ("other.org",)]


def test_work_that_is_given_up_when_the_archive_has_its_name_goes_on_to_its_end(tmp_path: Path) -> None:
    source, path = parse_location(Image(*TARS).lay_out(tmp_path / "a")), tmp_path / "b.tar"
    ended: list[bool] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            token = trio.lowlevel.current_trio_token()

            def replace(old: str, new: Path) -> None:
                os.rename(old, new)
                trio.from_thread.run_sync(scope.cancel, trio_token=token)

            with patch("snapshotter.image.places.archive_target.os.replace", replace):
                async with open_places(source, parse_location(f"oci-archive:{path}"), access()) as ends:
                    await copier(tmp_path)(*ends)
            ended.append(True)

    trio.run(main)
    assert ended == [True]
    assert path.exists()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_change_of_an_archive_gives_another_image_or_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    kind = data.draw(st.sampled_from(["docker-archive", "oci-archive"]))
    whole = docker_tar(saved(*SMALL)) if kind == "docker-archive" else tar_of(oci_members(Image(*SMALL), "v1"))
    path = folder / "a.tar"
    path.write_bytes(whole)
    expected = read_back(f"{kind}:{path}", folder)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        changed[at : at + 1] = data.draw(st.binary(max_size=2))
    path.write_bytes(bytes(changed))
    try:
        found = read_back(f"{kind}:{path}", folder)
    except SnapshotterError:
        return
    # Where the digests themselves were changed nobody can tell; a blob is always what its digest says.
    assert len(found) == len(expected)
