"""The recorder at containers of one process: an overlay as root, made with unshare and pivot_root, in which Python runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import trio

from snapshotter.errors import RecorderError
from snapshotter.image.optimize import watch_program
from snapshotter.image.optimize.recording import Recording, recording

CREATE = """
set -e
cd "$1"
if [ "$2" = bind ]; then mount --bind lower root
else mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work$2" root; fi
mount -t proc proc root/proc
cd root
pivot_root . host
exec "/host$3" -c 'import sys; print("created", flush=True); exec(sys.stdin.read())'
"""
GONE_S = 30.0
Start = Callable[..., "Box"]


class Box:
    """A container that has been created; what is written to its `lower` before is its image. `/host` is this machine."""

    def __init__(self, folder: Path, files: dict[str, str], options: str = "") -> None:
        self.folder = folder
        for name in ("lower/host", "lower/proc", "upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        for name in ("lib", "lib64", "usr"):
            (folder / "lower" / name).symlink_to(f"host/{name}")
        for name, text in files.items():
            path = folder / "lower" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        python = os.path.realpath(sys.executable)
        argv = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            CREATE,
            "sh",
            str(folder),
            options,
            python,
        ]
        env = {**os.environ, "PYTHONHOME": f"/host{sys.base_prefix}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "created\n"

    def begin(self, code: str) -> None:
        """Start it: run `code`."""
        assert self.process.stdin is not None
        self.process.stdin.write(dedent(code))
        self.process.stdin.close()

    def run(self, code: str) -> None:
        """Run `code` to its end."""
        self.begin(code)
        assert self.process.wait(timeout=120) == 0

    def close(self) -> None:
        """End it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                file.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as undo:

        def start(files: dict[str, str], options: str = "") -> Box:
            box = Box(tmp_path, files, options)
            undo.callback(box.close)
            return box

        yield start


def record(box: Box, code: str, check: Callable[[Recording], Any] = lambda _: None) -> list[str]:
    """What is recorded while the container runs `code`."""

    async def main() -> list[str]:
        async with recording(box.process.pid) as record:
            await trio.to_thread.run_sync(box.run, code)
            await record.stop()
            assert record.lost == 0
            check(record)
            return list(record.paths)

    return trio.run(main)


def test_files_are_recorded_once_in_order_of_first_access(start: Start) -> None:
    box = start({name: name for name in ("app/b", "app/a", "app/never", "c")})
    code = """
        import os
        for name in ("/app/b", "/c", "/app/b", "/app/a", "/c"):
            open(name).read()
        os.stat("/app/never"), os.listdir("/app")
    """
    assert record(box, code, lambda record: record.covers_all or pytest.fail("an overlay is watched whole")) == [
        "app/b",
        "c",
        "app/a",
    ]


def test_mapped_executed_loaded_and_concurrently_read_files_are_recorded(start: Start) -> None:
    box = start({"map": "m" * 5000, "run": "#!/bin/tool\n", "dir/x": "", **{f"many/{n}": "x" for n in range(64)}})
    lower = box.folder / "lower"
    (lower / "bin").mkdir()
    # A program that needs nothing, and a library that can be loaded: what this machine runs with.
    (lower / "bin" / "tool").write_bytes(Path("/bin/true").read_bytes())
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc." in line)
    (lower / "libx.so").write_bytes(Path(library).read_bytes())
    (lower / "bin" / "tool").chmod(0o755)
    (lower / "run").chmod(0o755)
    code = """
        import ctypes, mmap, os, subprocess, threading
        mapped = mmap.mmap(os.open("/map", os.O_RDONLY), 0, prot=mmap.PROT_READ)
        subprocess.run(["/run"], check=True)
        ctypes.CDLL("/libx.so")
        threads = [threading.Thread(target=lambda n=n: open(f"/many/{n}").read()) for n in range(64)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        print(mapped[0])
    """
    paths = record(box, code)
    assert paths[:4] == ["map", "run", "bin/tool", "libx.so"]
    assert sorted(paths[4:]) == sorted(f"many/{n}" for n in range(64))


def test_other_file_systems_directories_links_and_devices_are_not_recorded(start: Start) -> None:
    box = start({"app/a": ""})
    (box.folder / "lower" / "link").symlink_to("app/a")
    code = """
        import os
        open("/host/etc/passwd").read(), open("/proc/self/status").read(), os.listdir("/app"), os.readlink("/link")
        os.mkfifo("/app/pipe"), os.close(os.open("/app/pipe", os.O_RDWR))
        open("/link").read()
    """
    assert record(box, code) == ["app/a"]


def test_names_are_those_that_the_image_knows(start: Start) -> None:
    """Two names of one file, a file that was renamed before it was read, one that was removed after, an odd name."""
    box = start({"app/a": "1", "app/old": "2", "app/gone": "3", "app/x (deleted)": "4", "app/n\nl": "5", "d/x": "6"})
    os.link(box.folder / "lower" / "app" / "a", box.folder / "lower" / "app" / "a2")
    code = """
        import os
        open("/app/a2").read(), open("/app/a").read()
        os.rename("/app/old", "/app/new"), open("/app/new").read()
        file = open("/app/gone"); os.remove("/app/gone"); file.read()
        open("/app/x (deleted)").read(), open("/app/n\\nl").read()
        open("/app/made", "w").write("made"), open("/app/made").read()
    """
    assert record(box, code) == ["app/a2", "app/a", "app/old", "app/gone", "app/x (deleted)", "app/n\nl", "app/made"]


def test_renamed_directories_are_known_by_their_old_names_where_the_overlay_lets_them_be_renamed(start: Start) -> None:
    box = start({"app/lib/a": "1", "app/lib/deep/b": "2", "app/c": "3"}, ",metacopy=on,redirect_dir=on")
    code = """
        import os
        os.rename("/app/lib", "/lib2"), os.rename("/lib2/deep", "/lib2/deeper")
        os.rename("/app/c", "/app/moved"), os.rename("/app/moved", "/lib2/again")
        open("/lib2/a").read(), open("/lib2/deeper/b").read(), open("/lib2/again").read()
    """
    assert record(box, code) == ["app/lib/a", "app/lib/deep/b", "app/c"]


def test_other_roots_namespaces_and_bind_mounts_lead_to_the_same_names(start: Start) -> None:
    box = start({name: name for name in ("app/chroot", "app/mounted", "app/namespace", "app/bound/x", "mnt/empty")})
    code = """
        import os, subprocess
        if not (child := os.fork()):
            os.chroot("/app"), open("/chroot").read(), os._exit(0)
        os.waitpid(child, 0)
        run = lambda command: subprocess.run(["/host/bin/sh", "-ec", command], check=True)
        os.environ["PATH"] = "/host/usr/sbin:/host/usr/bin:/host/sbin:/host/bin"
        run("mount --bind /app /mnt; read x < /mnt/mounted || true; until umount /mnt 2> /host/dev/null; do sleep 0.01; done")
        run("unshare --mount /host/bin/sh -c 'read x < /app/namespace || true'")
        # What is bound is named by the namespace, which lasts until the access is noted: the mount is busy till then.
        gone = "until umount /mnt 2> /host/dev/null; do sleep 0.01; done"
        run(f"unshare --mount /host/bin/sh -c 'mount --bind /app/bound /mnt; read x < /mnt/x || true; {gone}'")
    """
    assert record(box, code) == ["app/chroot", "app/mounted", "app/namespace", "app/bound/x"]


def test_root_that_is_no_overlay_is_watched_by_its_mount(start: Start) -> None:
    box = start({"app/a": "", "app/b": ""}, "bind")
    code = "open('/app/a').read(), open('/host/etc/passwd').read(), open('/app/b').read()"
    assert record(box, code, lambda record: record.covers_all and pytest.fail("others use it")) == ["app/a", "app/b"]


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_nothing_is_lost_however_many_files_are_opened(start: Start, count: int) -> None:
    box = start({f"many/{n % 100}/{n}": "" for n in range(count)})
    paths = record(box, f"for n in range({count}): open(f'/many/{{n % 100}}/{{n}}').read()")
    assert paths == [f"many/{n % 100}/{n}" for n in range(count)]


def test_names_beyond_a_limit_and_what_takes_too_long_to_note_count_as_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that the limits can be other ones."""
    monkeypatch.setattr(watch_program, "_NAMES_MAX", 9)
    monkeypatch.setattr(watch_program, "_CATCH_UP_S", -1.0)
    box = start({"first": "", "second": "", "third": ""})
    watch = watch_program.Watch(box.process.pid)
    try:
        box.run("for name in ('first', 'second', 'third'): open('/' + name).read()")
        watch.end()
        # One read of the queue takes all three.
        assert (list(watch.found), watch.lost) == ([b"first"], 3)
    finally:
        os.close(watch.fanotify)


def test_pipe_in_the_root_passes_everything_from_writer_to_reader(start: Start) -> None:
    """The kernel opens it for the recorder, whom a writer must not take for its reader."""
    code = """
        import os
        os.mkfifo("/pipe"), os.mkfifo("/back")
        if not (child := os.fork()):
            for number in range(300):
                open("/pipe", "w").write(str(number))
                assert open("/back").read() == str(number)
            open("/turn").read(), os._exit(0)
        for number in range(300):
            assert open("/pipe").read() == str(number)
            open("/back", "w").write(str(number))
        assert os.waitpid(child, 0)[1] == 0
    """
    assert record(start({"turn": ""}), code) == ["turn"]


def test_stop_ends_while_the_container_goes_on_reading(start: Start) -> None:
    box = start({f"{n}": "" for n in range(50)})
    code = "n = 0\nprint('going', flush=True)\nwhile True: open(f'/{n % 50}').read(); n += 1"

    async def main() -> None:
        async with recording(box.process.pid) as record:
            box.begin(code)
            assert box.process.stdout is not None
            box.process.stdout.readline()
            await record.stop()
            await record.stop()
            assert box.process.poll() is None
            assert set(record.paths) <= {f"{n}" for n in range(50)}

    trio.run(main)


def test_process_that_is_gone_cannot_be_recorded() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    async def main() -> None:
        with pytest.raises(RecorderError, match=f"cannot reach the files of process {gone.pid}"):
            async with recording(gone.pid):
                raise AssertionError

    trio.run(main)


def test_missing_capability_is_named() -> None:
    program = [sys.executable, "-I", "-S", watch_program.__file__, str(os.getpid()), str(os.getpid())]
    done = subprocess.run(["setpriv", "--bounding-set=-sys_admin", *program], capture_output=True, check=False)
    assert done.stdout.startswith(b"refused\0")
    assert b"CAP_SYS_ADMIN" in done.stdout


def test_program_that_ends_early_is_an_error(start: Start) -> None:
    box = start({"a": ""})

    async def main() -> None:
        async with recording(box.process.pid) as record:
            os.kill(record.pid, signal.SIGKILL)
            with pytest.raises(RecorderError, match="ended early"):
                # Nobody has to wait for it until the container's time is over.
                await record.ended()
        async with recording(box.process.pid) as record:
            os.kill(record.pid, signal.SIGKILL)
            with pytest.raises(RecorderError, match="ended early"):
                await record.stop()

    trio.run(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_program_ends_with_whoever_started_it(start: Start, number: int) -> None:
    box = start({"a": ""})
    code = f"""
        import trio
        from snapshotter.image.optimize.recording import recording
        async def main():
            async with recording({box.process.pid}) as record:
                print(record.pid, flush=True)
                await trio.sleep_forever()
        trio.run(main)
    """
    parent = subprocess.Popen([sys.executable, "-c", dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    program = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.communicate()
    deadline = time.monotonic() + GONE_S
    while (status := status_of(program)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status in ("", "Z")


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].partition(" ")[0].replace("Z", "")
    except FileNotFoundError:
        return ""


def test_file_larger_than_an_old_offset_holds_is_recorded(start: Start) -> None:
    box = start({"large": ""})
    os.truncate(box.folder / "lower" / "large", 5 << 30)
    assert record(box, "open('/large', 'rb').read(1)") == ["large"]


def test_names_of_one_file_are_recorded_each_by_its_first_use_however_often_it_is_read(start: Start) -> None:
    box = start({"a": "1" * 10_000})
    for name in ("b", "c"):
        os.link(box.folder / "lower" / "a", box.folder / "lower" / name)
    code = """
        for name in ("/b", "/a", "/b"):
            for _ in range(500):
                with open(name) as file:
                    while file.read(100): pass
    """
    assert record(box, code) == ["b", "a"]
