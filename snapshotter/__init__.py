"""A containerd snapshotter that pulls container images lazily."""

__version__ = "0.1.0"
