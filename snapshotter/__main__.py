"""`python -m snapshotter` is the command `snapshotter`."""

from snapshotter.cli.main import main

main()
