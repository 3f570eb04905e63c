"""From labels to attached layers: what is trusted, what is refused, and how often the registry is asked."""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from snapshotter.config import Config
from snapshotter.errors import NotLazy, Reason, RegistryDenied, RegistryUnreachable
from snapshotter.format.footer import Flavor
from snapshotter.layer import images
from snapshotter.layer.toc_pool import WORKERS, TocPool
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry, digest_of
from tests.layer.world import QUIET, World, request, run, until, world

TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


def layers(count: int = 3) -> list[BuiltLayer]:
    return [layer(dir("d"), file(f"d/{number}", b"x" * (1000 + number))) for number in range(count)]


def refused(
    tmp_path: Path,
    main: Callable[[World], Awaitable[object]],
    config: Config = QUIET,
    registry: MemoryRegistry | None = None,
) -> NotLazy:
    async def wrapped() -> NotLazy:
        async with world(tmp_path / "root", registry or MemoryRegistry(), config) as it:
            try:
                await main(it)
            except NotLazy as error:
                assert it.room.shelf.all() == ()
                assert [path for path in (it.root / "index").iterdir() if path.suffix != ".idx"] == []
                assert [path for path in (it.root / "tocs").iterdir() if path.name.startswith("section")] == []
                return error
            raise AssertionError("it was not refused")

    return run(wrapped)


def test_an_image_costs_one_manifest_and_one_tail_request_a_layer(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), layers()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            await it.pull(*built)

    run(main)
    assert registry.manifest_requests == 1
    assert sorted(asked.digest for asked in registry.requests) == sorted(one.digest for one in built)


def test_numbers_are_not_used_again_after_a_removal(tmp_path: Path) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (first,) = await it.pull(built)
            await it.room.release(first.number)
            (second,) = await it.pull(built)
            assert second.number > first.number
            assert await it.read(second, "d/0") == built.files["d/0"]

    run(main)


def test_a_layer_of_another_image_is_found_without_the_registry(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), layers()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one, *_ = await it.pull(*built)
            registry.requests.clear()
            (again,) = await it.pull(built[0], tag="2")
            assert again is one
            assert registry.requests == []
            assert {source.reference for source in it.state.sources(one.number)} == {
                "registry.test/app:1",
                "registry.test/app:2",
            }

    run(main)


def test_without_a_manifest_digest_the_tag_is_resolved(tmp_path: Path) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)
    registry.add_image("1", [(built.blob, dict(built.annotations))])

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one = await it.room.resolve(request(built, None))
            assert await it.read(one, "d/0") == built.files["d/0"]

    run(main)


def test_a_layer_that_the_manifest_lacks_is_refused(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    named, other = layers(2)
    manifest = registry.add_image("1", [(other.blob, dict(other.annotations))])
    registry.blobs[named.digest] = named.blob

    async def main(it: World) -> None:
        await it.room.resolve(request(named, manifest.digest))

    assert refused(tmp_path, main, registry=registry).reason is Reason.NOT_IN_MANIFEST


def test_a_toc_that_is_not_the_annotated_one_is_refused(tmp_path: Path) -> None:
    (built,) = layers(1)
    lying = replace(built, annotations={**built.annotations, TOC_DIGEST: digest_of(b"another")})
    error = refused(tmp_path, lambda it: it.pull(lying))
    assert error.reason is Reason.TOC_MISMATCH
    assert "tampered" in str(error)


def test_a_label_that_contradicts_the_manifest_is_refused(tmp_path: Path) -> None:
    (built,) = layers(1)

    async def main(it: World) -> None:
        registry = it.registry
        registry.add_image("1", [(built.blob, dict(built.annotations))])
        await it.room.resolve(request(built, None, label=digest_of(b"another")))

    assert refused(tmp_path, main).reason is Reason.TOC_MISMATCH


def test_a_layer_without_an_anchor_is_refused_unless_the_admin_allows_it(tmp_path: Path) -> None:
    (built,) = layers(1)
    bare = replace(built, annotations={})
    (tmp_path / "no").mkdir()
    assert refused(tmp_path / "no", lambda it: it.pull(bare)).reason is Reason.NO_ANCHOR
    allowed = replace(QUIET, lazy=replace(QUIET.lazy, allow_unverified=True))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), allowed) as it:
            (one,) = await it.pull(bare)
            assert not one.record.verified
            assert await it.read(one, "d/0") == built.files["d/0"]

    run(main)


def test_a_request_to_skip_verification_counts_only_with_the_admins_word(tmp_path: Path) -> None:
    (built,) = layers(1)
    lying = {**built.annotations, TOC_DIGEST: digest_of(b"another")}

    async def main() -> None:
        registry = MemoryRegistry()
        manifest = registry.add_image("1", [(built.blob, lying)])
        asked = replace(request(built, manifest.digest), skip_verify=True)
        async with world(tmp_path / "no", registry) as it:
            with pytest.raises(NotLazy):
                await it.room.resolve(asked)
        allowed = replace(QUIET, lazy=replace(QUIET.lazy, allow_unverified=True))
        async with world(tmp_path / "yes", registry, allowed) as it:
            assert not (await it.room.resolve(asked)).record.verified

    run(main)


def test_legacy_stargz_needs_the_admins_word_and_shares_nothing(tmp_path: Path) -> None:
    built = layer(dir("d"), file("d/0", b"x" * 1000), flavor=Flavor.STARGZ)
    allowed = replace(QUIET, lazy=replace(QUIET.lazy, allow_unverified=True))
    (tmp_path / "no").mkdir()
    refused(tmp_path / "no", lambda it: it.pull(built))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), allowed) as it:
            (one,) = await it.pull(built)
            assert await it.read(one, "d/0") == b"x" * 1000
            names = [stored.digest.hex() for stored in it.store.iterate("node")]
            assert names
            assert digest_of(b"x" * 1000).removeprefix("sha256:") not in names

    run(main)


@pytest.mark.parametrize("storage", [False, True])
def test_zstd_chunked_needs_no_footer_request(tmp_path: Path, storage: bool) -> None:
    registry = MemoryRegistry()
    built = layer(file("f", b"y" * 5000), flavor=Flavor.ZSTD_CHUNKED, storage=storage)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            (asked,) = registry.requests
            assert asked.length < 2000
            assert await it.read(one, "f") == b"y" * 5000

    run(main)


def test_an_external_toc_is_found_in_its_own_image(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    built = layer(file("f", b"y" * 5000), flavor=Flavor.EXTERNAL)
    registry.add_image(
        "1-esgztoc", [(built.external_toc, {"containerd.io/snapshot/stargz/layer.digest": built.digest})]
    )

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            assert await it.read(one, "f") == b"y" * 5000

    run(main)


def test_an_ordinary_layer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    plain = replace(layers(1)[0], blob=b"\x1f\x8b" + bytes(5000))
    plain = replace(plain, digest=digest_of(plain.blob))  # type: ignore[arg-type]
    error = refused(tmp_path, lambda it: it.pull(plain))
    assert error.reason is Reason.NOT_LAZY_FORMAT
    assert "ordinary tar layer" in str(error)


def test_a_media_type_without_toc_is_not_even_asked_for(tmp_path: Path) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)
    manifest = registry.add_image("1", [(built.blob, dict(built.annotations))], TAR_LAYER)

    async def main(it: World) -> None:
        await it.room.resolve(request(built, manifest.digest))

    assert refused(tmp_path, main, registry=registry).reason is Reason.MEDIA_TYPE
    assert registry.requests == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (RegistryUnreachable("registry.test does not answer"), Reason.UNREACHABLE),
        (RegistryDenied("registry.test refuses the credentials"), Reason.REGISTRY_DENIED),
    ],
)
def test_registry_faults_become_their_reason_and_the_next_pull_works(
    tmp_path: Path, fault: Exception, reason: Reason
) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)
    manifest = registry.add_image("1", [(built.blob, dict(built.annotations))])

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            registry.faults.append(fault)  # type: ignore[arg-type]
            with pytest.raises(NotLazy) as refusal:
                await it.room.resolve(request(built, manifest.digest))
            assert refusal.value.reason is reason
            one = await it.room.resolve(request(built, manifest.digest))
            assert await it.read(one, "d/0") == built.files["d/0"]

    run(main)


def test_one_bad_layer_does_not_keep_the_others_from_being_lazy(tmp_path: Path) -> None:
    good, bad = layers(2)
    lying = replace(bad, annotations={TOC_DIGEST: digest_of(b"another")})

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            registry = it.registry
            manifest = registry.add_image("1", [(one.blob, dict(one.annotations)) for one in (good, lying)])
            await it.room.resolve(request(good, manifest.digest))
            for _ in range(2):
                with pytest.raises(NotLazy):
                    await it.room.resolve(request(lying, manifest.digest))

    run(main)


def test_the_admin_says_which_images_may_be_lazy(tmp_path: Path) -> None:
    config = replace(QUIET, lazy=replace(QUIET.lazy, deny=("registry.test/*",)))
    assert refused(tmp_path, lambda it: it.pull(*layers(1)), config).reason is Reason.DENIED


def test_a_worker_that_died_idle_fails_no_pull(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), layers(2)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            await it.pull(built[0])
            for worker in it.room.pool._idle:
                worker.kill()
                await worker.wait()
            (one,) = await it.pull(built[1], tag="2")
            assert await it.read(one, "d/1") == built[1].files["d/1"]

    run(main)


def test_both_workers_stay_for_the_next_pull(tmp_path: Path) -> None:
    built = layers(8)

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            await it.pull(*built[:4])
            # One of them may still be starting.
            await until(lambda: len(it.room.pool._idle) == WORKERS)
            first = {worker.pid for worker in it.room.pool._idle}
            await it.pull(*built[4:], tag="2")
            assert {worker.pid for worker in it.room.pool._idle} == first

    run(main)


def test_no_worker_at_start_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(_: TocPool) -> trio.Process:
        raise OSError(errno.EAGAIN, "no more processes")

    async def main() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(TocPool, "_start", none)
            async with world(tmp_path / "root", MemoryRegistry()) as it:
                await trio.testing.wait_all_tasks_blocked(0.05)
                patched.undo()
                await it.pull(*layers(1))

    run(main)


def test_an_unverified_layer_is_not_taken_again_once_the_admin_forbids_it(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    built = layer(dir("d"), file("d/0", b"x" * 1000), digests="none")
    allowed = replace(QUIET, lazy=replace(QUIET.lazy, allow_unverified=True))

    async def main() -> None:
        async with world(tmp_path / "root", registry, allowed) as it:
            (one,) = await it.pull(built)
            assert not one.record.verified
        async with world(tmp_path / "root", registry) as it:
            with pytest.raises(NotLazy) as caught:
                await it.pull(built, tag="2")
            assert caught.value.reason is Reason.TOC_INVALID

    run(main)


def test_a_failure_of_another_day_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, built = MemoryRegistry(), layers(2)
    monkeypatch.setattr(images, "FAILURE_LIFE_S", -1.0, raising=False)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            digest = registry.add_image("1", [(one.blob, dict(one.annotations)) for one in built]).digest
            registry.away.add("registry.test")
            with pytest.raises(NotLazy):
                await it.room.resolve(request(built[0], digest))
            await trio.testing.wait_all_tasks_blocked(0.05)
            registry.away.clear()
            one = await it.room.resolve(request(built[1], digest))
            assert await it.read(one, "d/1") == built[1].files["d/1"]

    run(main)
