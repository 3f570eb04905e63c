"""`--write` and `--revert`: containerd's configuration changed and changed back.

**What goes where.** containerd 1.x merges what `imports` names table by table for `proxy_plugins`, but of `plugins` it takes each plugin's
section whole from the last file that has one [tried with 1.6.20: a drop-in with two keys of CRI's section resets its pause
image, its runtimes, its registries to the defaults]. A drop-in that holds a copy of the merged section would work today and
silently undo what the admin changes in the main file tomorrow. So on 1.x the drop-in holds the proxy plugin, and the two
keys about pulls go into the file whose section counts: the last that has one, mostly the main file. containerd 2.0 and
later merge key by key (its pull request 9982): there the drop-in holds everything and the main file gets one line, or none.

An imported file may not say a higher version than the main file (2.x), nor 2 beside a main file of version 1 (1.x): on 1.x
the drop-in says none, on 2.x that of the main file.

**Order.** Record and backups first, then the drop-in, then the file that imports it: containerd does not start with an import
that is not there, and it may be started at any moment. Back again the other way round. After either,
containerd's own program reads the result; what it does not take is put back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snapshotter.containerd import editing, files, lines, record
from snapshotter.containerd.editing import Edit
from snapshotter.containerd.effective import dumped
from snapshotter.containerd.files import Change
from snapshotter.containerd.finding import Found
from snapshotter.containerd.lines import FIRST_OF_2, Part, Wanted
from snapshotter.containerd.record import BACKUP, Record, Written
from snapshotter.containerd.settings import CRI, read_settings
from snapshotter.containerd.site import DROP_IN_NAME, Site, covers, load_text, loaded, site_of, text_of
from snapshotter.errors import ConfigError

HEADING = "Written by `snapshotter config containerd --write`; `snapshotter config containerd --revert` takes it out."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or would be; nothing if `changes` is empty.

    `kept` are keys that somebody changed since and that therefore stay. `checked` says that containerd's own program
    has read the result.
    """

    main: Path
    restart: str
    changes: tuple[Change, ...] = ()
    kept: tuple[str, ...] = ()
    checked: bool = False


@dataclass(slots=True)
class _Draft:
    """A file being written. `origin` is it without our edits, None if it is there only because of them."""

    path: Path
    now: bytes | None
    origin: bytes | None
    text: str
    edits: list[Edit]

    def put(self, part: Part, mark: str = editing.MARK) -> None:
        self.text, edits = editing.put(self.text, part, str(self.path), mark)
        self.edits += edits

    def put_import(self, entry: Path) -> None:
        self.text, edits = editing.put_import(self.text, str(entry), str(self.path))
        self.edits += edits


def write(found: Found, wanted: Wanted, *, dry_run: bool = False) -> Outcome:
    """Put `wanted` into the configuration of `found`; nothing changes if it is there already.

    Raises:
        ConfigError: a file cannot be read, edited or written, or containerd does not take the result; all is as it was.
        ContainerdUnfit: this containerd's configuration is nobody's to write.
    """
    site = site_of(found)
    if site.refusal:
        raise ConfigError(site.refusal)
    before = record.load(site.main)
    steps = _changes(site, before, _drafts(site, wanted, before))
    changes = _effective(steps)
    check = site.checkable and found.binary is not None
    if changes and not dry_run:
        # What an earlier --write did goes back first: should this be killed half way, the record that lies there is
        # about what lies there.
        back, _ = _back(site, before)
        left = {change.path: change.after for change in back}
        steps = [replace(change, before=left.get(change.path, change.before)) for change in steps]
        with files.changed(_effective([*back, *steps])):
            if check:
                _check(found, site, wanted)
    return Outcome(site.main, site.restart, tuple(changes), checked=check and not dry_run)


def revert(found: Found, *, dry_run: bool = False) -> Outcome:
    """Take out what `write` put in; what was edited since stays. Nothing changes if nothing was written.

    Raises:
        ConfigError: a file cannot be read, edited or written, or containerd does not take the result; all is as it was.
    """
    site = site_of(found)
    written = record.load(site.main)
    back, kept = _back(site, written)
    changes = _effective(back)
    checked = False
    if changes and not dry_run:
        with files.changed(changes):
            if site.checkable and found.binary is not None and site.main.exists():
                dumped(found, site.main)
                checked = True
        files.remove_if_empty(written.directories)
    return Outcome(site.main, site.restart, tuple(changes), tuple(kept), checked)


def _back(site: Site, written: Record) -> tuple[list[Change], list[str]]:
    """The way back: the files, those that import first; then backups and record. And keys that stay."""
    changes: list[Change] = []
    kept: list[str] = []
    stays = False
    for one in written.files:  # the drop-in is the first
        now = files.read(one.path)
        origin, left = _origin(_without_import(one) if stays else one, now)
        stays = stays or (one.path.name == DROP_IN_NAME and origin is not None)
        kept += left
        changes.insert(0, Change(one.path, now, origin))
    if written.files:
        gone = [one.backup for one in written.files if one.backup is not None]
        changes += [Change(path, files.read(path), None) for path in (*gone, record.path_beside(site.main))]
    return changes, kept


def _effective(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.before != change.after]


def _drafts(site: Site, wanted: Wanted, before: Record) -> list[_Draft]:
    """The files with what is wanted in them, in the order in which they are written."""
    recorded = {one.path: one for one in before.files}
    own, pulls = lines.plugin(wanted), lines.pulls(wanted)
    main = _draft(site.main, recorded, site.seed)
    if main.origin is None and site.seed is None:
        main.text = f"version = {wanted.file_version}\n"
    if site.drop_in is None:
        for part in (*own, *pulls):
            main.put(part)
        return [main]
    drop_in = _draft(site.drop_in, recorded)
    if drop_in.now is not None and site.drop_in not in recorded:
        raise ConfigError(f"{site.drop_in} was not written by this command: move it away; nothing was changed")
    merges = wanted.version >= FIRST_OF_2 or not site.checkable  # k0s merges key by key, by itself
    if drop_in.origin is None:
        version = f"version = {wanted.file_version}\n" if merges and wanted.file_version >= 2 else ""
        drop_in.text = lines.commented(HEADING) + version
    for part in (*own, *(pulls if merges else ())):
        drop_in.put(part, mark="")
    drafts = [drop_in]
    if not merges:
        deciding = _deciding(site)
        target = main if deciding == main.path else _draft(deciding, recorded)
        for part in pulls:
            target.put(part)
        drafts += [target] if target is not main else []
    if not site.imported and not _imports(main, site.drop_in):
        main.put_import(site.drop_in)
    # What was written once and is not needed any more goes back to its origin with this.
    others = [_draft(path, recorded) for path in recorded if path not in {main.path, *(one.path for one in drafts)}]
    return [*drafts, *([main] if main.edits or main.path in recorded else []), *others]


def _draft(path: Path, recorded: dict[Path, Written], seed: Path | None = None) -> _Draft:
    now = files.read(path)
    origin = _origin(recorded[path], now)[0] if path in recorded else now
    data = origin if origin is not None or seed is None else files.read(seed)
    return _Draft(path, now, origin, text_of(path, data) if data is not None else "", [])


def _deciding(site: Site) -> Path:
    """The file whose section about CRI containerd 1.x takes: the last that has one, else the main file."""
    having = [
        one.path
        for one in loaded(site.main)
        if one.path != site.drop_in and any(editing.dig(one.tables, ("plugins", name)) for name in (CRI, "cri"))
    ]
    return having[-1] if having else site.main


def _imports(main: _Draft, path: Path) -> bool:
    imports = load_text(main.path, main.text.encode()).get("imports", [])
    return any(covers(str(entry), path) for entry in imports)


def _origin(one: Written, now: bytes | None) -> tuple[bytes | None, list[str]]:
    """A file without what was written into it; and keys that somebody changed since, which stay."""
    if now is None:
        return None, []
    if one.is_untouched(now):
        stored = files.read(one.backup) if one.backup is not None else None
        if one.backup is None or stored is not None:
            return stored, []
    taken = editing.take(text_of(one.path, now), one.edits, str(one.path))
    left = editing.read(taken.text, str(one.path))
    if one.backup is None and left.keys() <= {"version"}:
        return None, []
    return taken.text.encode(), [f"{one.path}: {'.'.join(path)}" for path in taken.kept]


def _without_import(one: Written) -> Written:
    """`one` whose `imports` are not taken out: what they name holds lines of somebody else now, and stays."""
    edits = tuple(edit for edit in one.edits if all(key.path != ("imports",) for key in edit.keys))
    return replace(one, edits=edits, sha256="" if edits != one.edits else one.sha256)


def _changes(site: Site, before: Record, drafts: Sequence[_Draft]) -> list[Change]:
    """Record, backups, then the files. Nothing if the files are as they should be."""
    edits: list[Change] = []
    backups: list[Change] = []
    written: list[Written] = []
    for draft in drafts:
        after = draft.text.encode() if draft.edits or draft.origin is not None else None
        edits.append(Change(draft.path, draft.now, after, like=site.seed))
        if not draft.edits or after is None:
            continue
        backup = None
        if draft.origin is not None:
            backup = draft.path.with_name(draft.path.name + BACKUP)
            backups.append(Change(backup, files.read(backup), draft.origin, like=draft.path))
        written.append(Written(draft.path, record.digest(after), tuple(draft.edits), backup))
    if not _effective(edits):
        return []
    folders = {*before.directories, *(folder for change in edits for folder in files.missing_above(change.path))}
    kept = Record(tuple(written), tuple(sorted(folders)))
    path = record.path_beside(site.main)
    needed = {change.path for change in backups}
    gone = [one.backup for one in before.files if one.backup is not None and one.backup not in needed]
    return [
        Change(path, files.read(path), record.dump(kept)),
        *backups,
        *edits,
        *(Change(backup, files.read(backup), None) for backup in gone),
    ]


def _check(found: Found, site: Site, wanted: Wanted) -> None:
    """Have containerd read what was written. Raises ConfigError if it does not come to what is wanted."""
    settings = read_settings(dumped(found, site.main), wanted.version, wanted.socket)
    if settings.plugin_name != wanted.name:
        raise ConfigError(
            f"with [proxy_plugins.{wanted.name}] written containerd leads it to "
            f"{settings.others.get(wanted.name) or 'nowhere'}: {_culprit(site, ('proxy_plugins', wanted.name))}"
        )
    if settings.cri_disabled:
        return  # containerd shows nothing of a plugin that it does not load
    if wanted.transfer and settings.own_puller:
        raise ConfigError(
            f"{settings.own_puller} keeps pods' pulls away from the transfer service: leave --transfer out. Nothing was changed"
        )
    if settings.snapshotter != wanted.name or (settings.annotations_disabled and not settings.transfer):
        table = lines.pulls_table(wanted.file_version)
        raise ConfigError(
            f"with the file written containerd still has snapshotter = {settings.snapshotter}, "
            f"disable_snapshot_annotations = {str(settings.annotations_disabled).lower()}: {_culprit(site, table)}"
        )


def _culprit(site: Site, table: tuple[str, ...]) -> str:
    others = [str(one.path) for one in loaded(site.main) if editing.dig(one.tables, table) and one.path != site.drop_in]
    return f"{', '.join(others) or 'another file'} overrides it; change it there. Nothing was changed"
