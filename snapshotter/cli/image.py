"""`snapshotter image`: tools on images; none of them needs our daemon but what containerd asks of it."""

import click

from snapshotter.cli.lazy_group import LazyGroup, Place

PLACES = {
    "pull": Place("image_pull", "pull_command", "Pull an image into containerd, lazily where it can be."),
    "convert": Place("image_convert", "convert_command", "Make an image that can be pulled lazily."),
    "optimize": Place(
        "image_optimize", "optimize_command", "Run an image once, and convert it with what it reads in front."
    ),
    "inspect": Place("image_inspect", "inspect_command", "Look into an image without fetching its layers."),
}


@click.group(cls=LazyGroup, places=PLACES)
def image() -> None:
    """Pull images into containerd, make them lazy, look into them."""
