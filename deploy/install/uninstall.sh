#!/bin/sh
# Removes what install.sh installed. What the daemon fetched and the configuration stay, unless --purge is given.
set -eu

PREFIX=${PREFIX:-/usr/local}
UNITDIR=${UNITDIR:-}
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}

usage() {
    cat <<'TEXT'
Usage: [PREFIX=/usr/local] [DESTDIR=] ./uninstall.sh [--purge] [--force]

Removes estargz-snapshotter. Take it out of containerd's configuration and remove its containers and images first.

  --purge  also delete what the daemon keeps (its root directory) and /etc/estargz
  --force  remove it although containerd is configured for it or containers use its layers; those containers
           see I/O errors from then on
TEXT
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'uninstall: %s\n' "$*" >&2
    exit 1
}

purge=no force=no
for word in "$@"; do
    case $word in
    --purge) purge=yes ;;
    --force) force=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done

case $PREFIX in
/*[!A-Za-z0-9/._+-]* | *//* | */../* | */.. | */) fail "PREFIX=$PREFIX: give the plain absolute path it was installed to" ;;
/?*) ;;
*) fail "PREFIX=$PREFIX: give the absolute path it was installed to" ;;
esac
if [ -z "$UNITDIR" ]; then
    case $PREFIX in
    /usr | /usr/local) UNITDIR=$PREFIX/lib/systemd/system ;;
    *) UNITDIR=/etc/systemd/system ;;
    esac
fi
lib=$DESTDIR$PREFIX/lib/estargz-snapshotter
command=$DESTDIR$PREFIX/bin/snapshotter
# Who stands by first: it would take over from the daemon. The keeper last: the daemon would start another.
units='estargz-snapshotter-standby.service estargz-snapshotter.service estargz-snapshotter-keeper.service'
[ -d "$lib" ] || fail "$lib does not exist: nothing is installed there; give the PREFIX it was installed with"
[ -w "$lib" ] || fail "$lib may not be changed by $(id -un): run this as root"

# Files that a running containerd is configured by; where it is another one, the admin has its path.
configured_in() {
    for file in /etc/containerd/config.toml /etc/containerd/conf.d/*.toml /etc/k0s/containerd.toml \
        /etc/k0s/containerd.d/*.toml /var/lib/rancher/k3s/agent/etc/containerd/config.toml \
        /var/lib/rancher/rke2/agent/etc/containerd/config.toml; do
        if [ -f "$file" ] && grep -v '^[[:space:]]*#' "$file" | grep -qF "$1"; then
            say "$file"
        fi
    done
}

# The program's own words on where things are; without a readable configuration nothing of it can be deleted.
ask() {
    "$lib/current/bin/python3" -I -S -c '
import os, sys
from pathlib import Path
from snapshotter.config import load
from snapshotter.errors import ConfigError
named = os.environ.get("ESTARGZ_CONFIG")
try:
    print(getattr(load(Path(named) if named else None), sys.argv[1]))
except ConfigError as error:
    sys.exit(f"uninstall: {error}")
' "$1"
}

# How many mounts lie below a directory, or are overlays made of directories in it.
mounted_from() {
    grep -cE "[ =:,]$(printf '%s' "$1" | sed 's/[.+]/\\&/g')/" /proc/self/mountinfo || :
}

leave_the_node() {
    root=$(ask root) && run_dir=$(ask run_dir) && socket=$(ask socket) || {
        [ $force = yes ] && [ $purge = no ] || fail "cannot find out from the configuration what belongs to the daemon:" \
            "correct it (snapshotter config check); or use --force without --purge"
        root='' run_dir='' socket=/run/estargz/snapshotter.sock
    }
    files=$(configured_in "$socket")
    if [ -n "$files" ]; then
        [ $force = yes ] || fail "containerd is still configured for it ($(say "$files" | tr '\n' ' ')): run" \
            "\`snapshotter config containerd --revert\` and restart containerd; nothing was removed"
        say "warning: containerd is still configured for it, and pods that need it will fail: $(say "$files" | tr '\n' ' ')"
    fi
    if [ $force = yes ]; then
        "$command" teardown --force || say "warning: not all mounts could be detached; see above"
    else
        "$command" teardown || fail "nothing was removed; --force goes on all the same"
    fi
    if [ -d /run/systemd/system ]; then
        for unit in $units; do
            systemctl disable --now "$unit" || say "warning: $unit could not be disabled; see above"
        done
    fi
}

delete_state() {
    for directory in "$root" "$run_dir"; do
        [ -d "$directory" ] || continue
        [ "$(mounted_from "$directory")" = 0 ] || fail "mounts still use $directory: the program is removed, the data" \
            "is not; stop what uses it (findmnt), then delete it"
    done
    if [ -d "$root" ] && [ ! -f "$root/state.db" ]; then
        say "warning: $root is no root directory of the daemon (it has no state.db), it stays"
    else
        # It may be a file system of its own.
        rm -rf "${root:?}"/* "${root:?}"/.[!.]*
        rmdir "$root" 2>/dev/null || :
    fi
    rm -rf "$run_dir/l" "$run_dir/e" "$run_dir/fuse"
    for file in lock snapshotter.sock keeper.sock keeper.lock keeper.log crash in-hand deaths gate-files stranded torn-down; do
        rm -f "$run_dir/$file"
    done
    rmdir "$run_dir" 2>/dev/null || :
    rm -f /etc/estargz/config.toml
    rmdir /etc/estargz 2>/dev/null || :
}

[ -n "$DESTDIR" ] || leave_the_node

for unit in $units; do
    rm -f "$DESTDIR$UNITDIR/$unit"
done
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
rm -f "$command" "$DESTDIR$PREFIX/share/bash-completion/completions/snapshotter"
rm -rf "$DESTDIR$PREFIX/share/doc/estargz-snapshotter" "$lib"
# Directories that were made for these files and are empty now; those of the system's own prefixes stay.
for directory in share/bash-completion/completions share/bash-completion share/doc lib/systemd/system lib/systemd; do
    rmdir "$DESTDIR$PREFIX/$directory" 2>/dev/null || :
done
case $PREFIX in
/usr | /usr/local) ;;
*)
    for directory in /share /lib /bin ''; do
        rmdir "$DESTDIR$PREFIX$directory" 2>/dev/null || :
    done
    ;;
esac

say "removed estargz-snapshotter from $DESTDIR$PREFIX"
if [ $purge = yes ] && [ -z "$DESTDIR" ]; then
    delete_state
    say "and what it kept. containerd may still list its images and snapshots: \`ctr image rm\`, \`ctr snapshots\`"
elif [ $purge = yes ]; then
    rm -f "$DESTDIR/etc/estargz/config.toml"
    rmdir "$DESTDIR/etc/estargz" 2>/dev/null || :
elif [ -z "$DESTDIR" ]; then
    say "what stays: ${root:-its root directory} (fetched files and the state) and /etc/estargz; --purge would have deleted both,"
    say "and so does: rm -rf ${root:-/var/lib/estargz} /etc/estargz"
fi
