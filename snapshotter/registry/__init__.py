"""The registry room.

httpx loads a command line of its own with the package, and with it rich and pygments: 50 ms that the readers of a daemon
which takes over would wait for. It goes on without where that module cannot be had.
"""

import sys

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
