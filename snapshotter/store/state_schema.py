"""The schema of `state.db`, one entry per revision; a released entry is never edited, only followed by another."""

from collections.abc import Sequence

from snapshotter.store.sqlite import Migration

_REVISION_1 = """
CREATE TABLE layers (
    number          INTEGER PRIMARY KEY AUTOINCREMENT, -- the n of <fuse>/<session>/layers/<n>; never used twice
    layer_digest    TEXT NOT NULL,            -- sha256:<hex> of the compressed blob
    toc_digest      TEXT NOT NULL,            -- sha256:<hex> of the TOC's JSON
    domain          TEXT NOT NULL,            -- sharing domain: who may share objects with this layer
    index_revision  INTEGER NOT NULL,         -- format.index.INDEX_REVISION that wrote its index
    blob_size       INTEGER NOT NULL,         -- bytes of the compressed blob
    media_type      TEXT NOT NULL,            -- of the layer's descriptor in the manifest
    codec           TEXT NOT NULL,            -- compression of its members: gzip or zstd
    toc_offset      INTEGER NOT NULL,         -- blob offset of the compressed TOC section
    toc_end         INTEGER NOT NULL,         -- blob offset behind it
    payload_end     INTEGER NOT NULL,         -- blob offset behind the last byte of file content
    verified        INTEGER NOT NULL,         -- 1: the TOC's digest was anchored; 0: the admin allowed it without
    prefetch_size   INTEGER,                  -- bytes to prefetch by label; NULL: landmark or configuration decide
    prefetched      INTEGER NOT NULL DEFAULT 0, -- 1: the prefetch range is on this node
    complete        INTEGER NOT NULL DEFAULT 0, -- 1: every object of the layer was on this node at some time
    created_ns      INTEGER NOT NULL,         -- when the record was made, Unix time in nanoseconds
    last_used_ns    INTEGER NOT NULL,         -- last Prepare or Mounts of a chain that names it
    named           INTEGER NOT NULL DEFAULT 0, -- 1: a snapshot has named it; once none does, it may go at once
    UNIQUE (layer_digest, toc_digest, domain, index_revision)
);
CREATE TABLE layer_sources (                  -- where a layer's blob can be asked for
    number          INTEGER NOT NULL REFERENCES layers (number) ON DELETE CASCADE, -- whose
    reference       TEXT NOT NULL,            -- normalised image reference
    manifest_digest TEXT NOT NULL,            -- sha256:<hex> of the manifest in which it was found
    PRIMARY KEY (number, reference, manifest_digest)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    id              INTEGER PRIMARY KEY AUTOINCREMENT, -- names <root>/snapshots/<id> and <run>/l/<id>; never used twice
    key             TEXT NOT NULL UNIQUE,     -- containerd's key or committed name: one name space for all kinds
    parent_id       INTEGER REFERENCES snapshots (id), -- NULL: no parent
    kind            INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- 1 view, 2 active, 3 committed, as on the wire
    created_ns      INTEGER NOT NULL,         -- Unix time in nanoseconds
    updated_ns      INTEGER NOT NULL,         -- the same
    size            INTEGER,                  -- bytes without parents, once committed and measured; else NULL
    inodes          INTEGER,                  -- inodes, likewise
    layer_number    INTEGER REFERENCES layers (number), -- the lazy layer it stands for; NULL: an ordinary directory
    not_lazy        TEXT,                     -- errors.Reason why a remote Prepare became ordinary; NULL: it was none
    not_lazy_message TEXT,                    -- the sentence that goes with it
    reference       TEXT                      -- image it was pulled for, as far as the labels said
);
CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
CREATE INDEX snapshots_by_layer ON snapshots (layer_number) WHERE layer_number IS NOT NULL;
CREATE TABLE labels (
    snapshot_id     INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE, -- whose
    key             TEXT NOT NULL,            -- as containerd sent it
    value           TEXT NOT NULL CHECK (value <> ''), -- an empty value means no label and is not stored
    PRIMARY KEY (snapshot_id, key)
) WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (key, value);
CREATE TABLE sessions (
    number          INTEGER PRIMARY KEY AUTOINCREMENT, -- the <session> of <fuse>/<session>/; never used twice
    created_ns      INTEGER NOT NULL          -- when it began, Unix time in nanoseconds
);
"""

_REVISION_2 = """
CREATE TABLE domains (
    number          INTEGER PRIMARY KEY AUTOINCREMENT, -- part of the inode numbers of the gate's directories
    name            TEXT NOT NULL UNIQUE      -- sharing domain, as layers.domain has it
);
INSERT INTO domains (name) SELECT DISTINCT domain FROM layers ORDER BY 1;
CREATE TABLE gate_files (                     -- files that the gate serves through FUSE, in the session that runs
    number          INTEGER PRIMARY KEY AUTOINCREMENT, -- part of their inode numbers; used once a mount
    domain          TEXT NOT NULL,            -- sharing domain of the layers that name it
    name            TEXT NOT NULL,            -- hex of its digest; for a large file also of its identity
    size            INTEGER NOT NULL,         -- bytes, as the kernel was told
    UNIQUE (domain, name)
);
"""

MIGRATIONS: Sequence[Migration] = (_REVISION_1, _REVISION_2)
