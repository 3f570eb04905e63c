"""Every limit on what a layer may ask of the node, in one table; and, by name, those on what else strangers send.

A layer beyond a limit is refused with a FormatError and containerd unpacks it the ordinary way, so the limits may be
generous: they bound memory and time, they do not judge taste. Sizes are bytes. `docs/limits.md` is made of this module.
"""

from enum import StrEnum
from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

TOC_COMPRESSED = 256 * MIB
"""The TOC as it lies in the blob; a million entries take about 60 MiB."""

TOC_RAW = 1 * GIB
"""The TOC's JSON; Go writers need 430 to 550 bytes an entry."""

TOC_REUSED = 256 * MIB
"""The TOC's JSON of a layer that `--reuse` leaves as it is; one with more is converted, which takes less memory than to check it."""

TOC_ENTRIES = 4_000_000
"""Entries of a TOC, and also nodes of its tree: directories that only exist as somebody's parent count."""

TAR_TEXT = 256 * MIB
"""Names, links and attributes of a tar that becomes a lazy layer, and names of directories that it leaves out; all in memory."""

NAME = 255
"""One path component: NAME_MAX of Linux."""

PATH = 4095
"""A whole path, and the target of a symbolic link: PATH_MAX without its NUL."""

FILE_SIZE = 4 * TIB
"""One regular file; what is stored is bounded by the blob all the same (see INFLATE_*)."""

CHUNK_SIZE = 1 * GIB
"""One chunk is fetched and verified as a whole, so it must fit a disk quota and a deadline."""

INNER_OFFSET = 4 * GIB
"""Plain bytes that may have to be inflated and dropped before a chunk begins."""

INFLATE_GZIP = 1032
"""Plain bytes that deflate can make of one byte: two bits for each 258-byte match (RFC 1951, section 3.2.5)."""

INFLATE_ZSTD = 1 << 15
"""Plain bytes that zstd can make of one byte: a 128 KiB run-length block takes 4 (RFC 8878, section 3.1.1.2)."""

INFLATE_SLACK = 256 * KIB
"""Allowed on top of a ratio, for what the first block brings."""

ZSTD_WINDOW_LOG = 27
"""128 MiB of history per zstd frame, what `zstd -d` accepts without options."""

PIECE = 1 * MIB
"""Longest piece that a member decoder hands out."""

XATTR_NAME = 255
XATTR_VALUE = 64 * KIB
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of Linux."""

XATTRS = 1 * MIB
"""All extended attributes of one entry together; the kernel lists at most 64 KiB of names."""

ID_MAX = (1 << 32) - 2
"""Largest uid and gid; 4294967295 means "leave unchanged" to chown(2)."""

DEVICE_MAJOR = (1 << 12) - 1
DEVICE_MINOR = (1 << 20) - 1
"""Linux device numbers: 12 and 20 bits."""


class Sender(StrEnum):
    """Who sends what a limit bounds."""

    REGISTRY = "registry"
    NODE = "node"
    CLIENT = "client"
    SITE = "site"
    CONVERTER = "converter"


class Elsewhere(NamedTuple):
    """A limit of a room that does not import this module: where it stands, and what it bounds."""

    sender: Sender
    module: str
    name: str
    bounds: str


ELSEWHERE = (
    Elsewhere(
        Sender.REGISTRY, "registry.manifest", "MANIFEST_MAX", "A manifest or an index of manifests, as in containerd."
    ),
    Elsewhere(Sender.REGISTRY, "registry.manifest", "LAYERS_MAX", "Layers of an image: overlayfs stacks no more."),
    Elsewhere(Sender.REGISTRY, "layer.manifests", "INDEX_DEPTH", "Indexes inside of indexes that are followed."),
    Elsewhere(Sender.REGISTRY, "registry.wire", "HEADERS_MAX", "Status line and headers of an answer together."),
    Elsewhere(Sender.REGISTRY, "registry.challenge", "HEADER_MAX", "What is read of one WWW-Authenticate header."),
    Elsewhere(Sender.REGISTRY, "registry.auth", "_ANSWER_MAX", "The answer of a token server."),
    Elsewhere(
        Sender.REGISTRY, "registry.auth", "KEPT", "Repositories of which it is remembered what they want for a token."
    ),
    Elsewhere(Sender.REGISTRY, "registry.exchange", "_ERROR_MAX", "What is read of the body of an error."),
    Elsewhere(Sender.REGISTRY, "registry.knock", "ANSWER_MAX", "What is read of the answer to a first knock."),
    Elsewhere(Sender.REGISTRY, "registry.wire", "_DISCARD_MAX", "What is read of a body that nobody wants."),
    Elsewhere(
        Sender.REGISTRY,
        "registry.blob",
        "PIECE_MAX",
        "One piece of a blob on its way; a blob is never in memory as a whole.",
    ),
    Elsewhere(
        Sender.REGISTRY, "registry.retry", "PROGRESS_MIN", "What must come within a read timeout: less is no answer."
    ),
    Elsewhere(
        Sender.REGISTRY,
        "registry.redirect",
        "HOPS_MAX",
        "Redirects of one request that are followed, none to a link-local address.",
    ),
    Elsewhere(
        Sender.REGISTRY, "registry.reference", "NAME_MAX", "Host and repository of a reference together, in characters."
    ),
    Elsewhere(Sender.NODE, "format.footer", "KNOWN_MAX", "The first answer of a layer, which holds footer and TOC."),
    Elsewhere(
        Sender.NODE,
        "layer.opening",
        "TAILS_HELD",
        "Such answers in memory at once; beyond it TOCs go to the disk as they come.",
    ),
    Elsewhere(Sender.NODE, "layer.toc_pool", "WORKERS", "TOCs that are read, or images that are written, at once."),
    Elsewhere(
        Sender.NODE,
        "layer.toc_worker",
        "MEMORY_MAX",
        "Memory of a process that reads a TOC; the kernel ends it first if the node has less.",
    ),
    Elsewhere(
        Sender.NODE, "layer.room", "TOC_JOB_TIMEOUT_S", "Time for reading a TOC, and for writing an image of it."
    ),
    Elsewhere(
        Sender.NODE,
        "layer.sink",
        "MEMORY_CHUNK_MAX",
        "A chunk that is served from memory while the disk takes nothing.",
    ),
    Elsewhere(Sender.NODE, "layer.memory_chunks", "BYTES_MAX", "Such chunks that are kept for their next readers."),
    Elsewhere(Sender.NODE, "store.writer", "MEMORY_LIMIT", "A chunk that is gathered in memory and not in a file."),
    Elsewhere(Sender.NODE, "layer.counters", "HOSTS_MAX", "Registry hosts that are counted one by one."),
    Elsewhere(
        Sender.CLIENT, "service.server", "_MESSAGE_LIMIT", "One message to or from the socket, as in containerd."
    ),
    Elsewhere(
        Sender.CLIENT,
        "service.call_threads",
        "PATIENCE_S",
        "How long a client may take to send a request or to read a message.",
    ),
    Elsewhere(
        Sender.CLIENT,
        "service.patterns",
        "PROGRAM_MAX",
        "Steps of a regular expression in a filter, its repetitions written out.",
    ),
    Elsewhere(Sender.CLIENT, "service.mounts", "OPTIONS_MAX", "Options of a mount: one page."),
    Elsewhere(Sender.CLIENT, "metrics.server", "CONNECTIONS_MAX", "Connections to the address of the metrics."),
    Elsewhere(Sender.SITE, "registry.hosts_toml", "FILE_MAX", "A hosts.toml."),
    Elsewhere(Sender.SITE, "registry.hosts_toml", "_URL_MAX", "An address in it, in characters."),
    Elsewhere(
        Sender.SITE,
        "registry.certs_d",
        "HOSTS_KEPT",
        "Registries of which it is remembered what their hosts.toml says.",
    ),
    Elsewhere(Sender.SITE, "registry.helper_program", "ANSWER_MAX", "What a credential helper prints."),
    Elsewhere(
        Sender.CONVERTER,
        "format.tar_entries",
        "_LOOKED_AT_MAX",
        "Names that are compared because a tar replaces directories; beyond it the layer stays ordinary.",
    ),
    Elsewhere(Sender.CONVERTER, "image.places.ends", "DOCUMENT_MAX", "A configuration or manifest."),
    Elsewhere(Sender.CONVERTER, "image.places.archive_file", "MEMBERS_MAX", "Files of an archive with images."),
    Elsewhere(Sender.CONVERTER, "format.tar_reading", "_EXTENSION_MAX", "An extension header of a tar."),
    Elsewhere(Sender.CONVERTER, "image.optimize.record_file", "RECORD_MAX", "A record of what a container read."),
    Elsewhere(
        Sender.CONVERTER, "image.convert.selection", "_INDEX_DEPTH", "Indexes inside of indexes that are followed."
    ),
)
"""The rest of the table."""
