"""Log lines on standard error: text or JSON, with the journal's priorities where the journal reads them.

No secret reaches a log because no message carries one; what libraries say of requests, whose URLs may be signed, is
kept quiet: by the registry room for ever, here for the others unless the admin asks for `debug`.
"""

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType

from snapshotter.config import LogConfig

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog(3) levels, which sd-daemon(3) reads from a prefix `<n>`."""

_LIBRARIES = ("grpc", "hpack")

_SECRETS = re.compile(
    r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)\s+|[?&](?:[a-z-]*signature|sig|token|x-amz-credential"
    r"|x-amz-security-token)=|://[^/\s:@]+:(?=[^/\s@]*@))[^\s'\"&@,]+"
)

log = logging.getLogger(__name__)


class TextLines(logging.Formatter):
    """`time LEVEL logger: message`; under the journal, which knows the time, `<priority>logger: message`."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(name)s: %(message)s" if journal else "%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text without secrets; every line of it has the prefix."""
        text = without_secrets(super().format(record))
        if not self._journal:
            return text
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in text.splitlines())


class JsonLines(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, thread, and error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON without secrets."""
        values = {
            "time": _iso(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if record.threadName not in (None, "MainThread"):
            values["thread"] = str(record.threadName)
        if record.exc_info:
            values["error"] = without_secrets("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(values)


def _iso(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def without_secrets(text: str) -> str:
    """Return `text` with credentials, signatures and passwords in URLs and headers replaced by `***`."""
    return _SECRETS.sub(r"\1***", text)


def set_up(config: LogConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Send all log lines to standard error as `config` says, also those about crashes."""
    handler = logging.StreamHandler(sys.stderr)
    if config.format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TextLines(journal=_is_journal(sys.stderr.fileno(), environment)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = getattr(logging, config.level.upper())
    root.setLevel(level)
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.NOTSET if level == logging.DEBUG else logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def _is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Say whether `fd` is the journal's stream: JOURNAL_STREAM holds its device and inode, sd_journal_print(3)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the daemon ends because of an error nobody handled", exc_info=(kind, error, trace))


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_type is SystemExit or crash.exc_value is None:
        return
    name = crash.thread.name if crash.thread else "unknown"
    log.error(
        "thread %s ended because of an error nobody handled",
        name,
        exc_info=(crash.exc_type, crash.exc_value, crash.exc_traceback),
    )
