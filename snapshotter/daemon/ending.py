"""When the daemon ends, and with which exit code."""

import signal

import trio

TORN_DOWN = 3
"""Exit code after a teardown: the unit names it in RestartPreventExitStatus, else systemd would mount all again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """Made on the trio thread; `end_from_thread` and `unmounting` may be used from others."""

    def __init__(self) -> None:
        self._wanted = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self.exit_code = 0
        self.unmounting = False
        """A teardown takes the mount away: that it is gone is then no fault."""

    def end(self, exit_code: int = 0) -> None:
        """End the daemon; the first code counts."""
        if not self._wanted.is_set():
            self.exit_code = exit_code
            self._wanted.set()

    def end_from_thread(self, exit_code: int = 0) -> None:
        """Do the same from another thread."""
        self._token.run_sync_soon(self.end, exit_code)

    async def wait(self) -> None:
        """Return when the daemon shall end."""
        await self._wanted.wait()

    async def end_on_signal(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End on SIGTERM, SIGINT or SIGHUP. A second one ends the process at once, whatever it is doing."""
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for _ in signals:
                self.end()
                break
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
