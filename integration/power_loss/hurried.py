"""`snapshotter` that syncs its cache every two seconds: a short test then finds what a sync has covered and what none has."""

import sys

from snapshotter.cli.main import main
from snapshotter.layer import housekeeping

SYNC_EVERY_S = 2.0

if __name__ == "__main__":
    housekeeping.SYNC_EVERY_S = SYNC_EVERY_S
    sys.exit(main())
