#!/bin/sh
# Installs the release that lies beside this script. Plain POSIX shell: the node needs no Python, compiler or network.
#
#   PREFIX   where programs go; /usr/local
#   DESTDIR  put in front of every path, for images and packages; nothing of the running system is touched then
#   UNITDIR  where the unit goes; $PREFIX/lib/systemd/system if systemd looks there, else /etc/systemd/system
#
# A release of another version may be installed over one that runs: each has a directory of its own, and `current` says
# which one the next start takes. The running daemon keeps its own until it is restarted.
set -eu
umask 022

usage() {
    cat <<'TEXT'
Usage: [PREFIX=/usr/local] [DESTDIR=] [UNITDIR=] ./install.sh [--restart]

Installs estargz-snapshotter, or a new version over the one there.

  --restart  restart the daemon if it runs, so that it becomes the new version; the README says what that
             means for running containers
TEXT
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

restart=no
for word in "$@"; do
    case $word in
    --restart) restart=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done

release=$(dirname -- "$(readlink -f -- "$0")")
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}

# The unit, a link and a completion name it: what would need quotes in one of them is refused.
case $PREFIX in
/*[!A-Za-z0-9/._+-]* | *//* | */../* | */.. | */) fail "PREFIX=$PREFIX: give a plain absolute path, such as /usr/local" ;;
/?*) ;;
*) fail "PREFIX=$PREFIX: give an absolute path, such as /usr/local" ;;
esac
case $PREFIX in
/usr | /usr/local) UNITDIR=${UNITDIR:-$PREFIX/lib/systemd/system} ;;
*) UNITDIR=${UNITDIR:-/etc/systemd/system} ;;
esac

field() { sed -n "s/^$1=//p" "$release/release"; }
[ -r "$release/release" ] && [ -d "$release/tree" ] ||
    fail "$release is no complete release (release or tree/ is missing): unpack the archive again"
version=$(field version)
id=$(field id)

# What the release was built for, and the C library, are the two things that it cannot bring along.
check_machine() {
    machine=$(uname -m)
    [ "$machine" = "$(field machine)" ] ||
        fail "this release is for $(field machine), this machine is $machine: take the archive for $machine"
    wanted=$(field glibc)
    have=$(getconf GNU_LIBC_VERSION 2>/dev/null) || have=
    have=${have#glibc }
    [ -e "$(field loader)" ] ||
        fail "this system has no GNU C library ($(field loader); Alpine's musl is another one): run it on one with" \
            "glibc $wanted or later"
    if [ -n "$have" ]; then
        older=$(printf '%s\n' "$have" "$wanted" | sort -t . -k 1,1n -k 2,2n | head -n 1)
        [ "$older" = "$wanted" ] ||
            fail "this system has glibc $have and this release needs $wanted or later: build one on this" \
                "distribution (make dist), or on one with an older glibc"
    fi
    ran=$("$release/tree/bin/snapshotter" --version 2>&1) ||
        fail "the program does not run from $release (glibc $wanted or later is needed, and a file system that is not" \
            "mounted noexec): $ran"
}
[ -n "$DESTDIR" ] || check_machine

lib=$DESTDIR$PREFIX/lib/estargz-snapshotter
trees=$lib/trees
command=$DESTDIR$PREFIX/bin/snapshotter
if [ -e "$command" ] || [ -L "$command" ]; then
    case $(readlink -- "$command" || :) in
    ../lib/estargz-snapshotter/current/bin/snapshotter) ;;
    *) fail "$command is not of an installation of this kind: remove it, or give another PREFIX" ;;
    esac
fi

# Links are replaced by renaming: at each moment there is the old one or the new one.
relink() {
    ln -s "$1" "$2.new.$$"
    mv -fT "$2.new.$$" "$2"
}
place() {
    mkdir -p "$(dirname -- "$2")"
    cp -p "$1" "$2.new.$$"
    own "$2.new.$$"
    mv -f "$2.new.$$" "$2"
}
own() { [ "$(id -u)" != 0 ] || chown -R 0:0 "$1"; }

mkdir -p "$trees" "$DESTDIR$PREFIX/bin" 2>/dev/null ||
    fail "cannot write below $DESTDIR$PREFIX: run this as root, or give PREFIX or DESTDIR"
new=$trees/.new.$$
trap 'rm -rf "$new" "$lib/current.new.$$" "$command.new.$$"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cp -Rp "$release/tree" "$new"
own "$new"
# The same release again repairs its tree; what of it runs has its files open and finds the same ones afterwards.
if [ -d "$trees/$id" ]; then
    mv -fT "$trees/$id" "$trees/.old.$$"
fi
mv -fT "$new" "$trees/$id"
rm -rf "$trees/.old.$$"
relink "trees/$id" "$lib/current"
relink ../lib/estargz-snapshotter/current/bin/snapshotter "$command"
trap - EXIT

sed "s|^PREFIX=.*|PREFIX=\${PREFIX:-$PREFIX}|; s|^UNITDIR=.*|UNITDIR=\${UNITDIR:-$UNITDIR}|" \
    "$release/uninstall.sh" >"$lib/uninstall.sh"
chmod 755 "$lib/uninstall.sh"
own "$lib/uninstall.sh"

mkdir -p "$DESTDIR$UNITDIR"
for unit in "$release"/share/systemd/*; do
    target=$DESTDIR$UNITDIR/${unit##*/}
    sed "s|^\\(ExecStart=\\)/usr/local/|\\1$PREFIX/|; s|file:/usr/local/|file:$PREFIX/|" "$unit" >"$target.new.$$"
    touch -r "$unit" "$target.new.$$"
    own "$target.new.$$"
    mv -f "$target.new.$$" "$target"
done

place "$release/share/completion.bash" "$DESTDIR$PREFIX/share/bash-completion/completions/snapshotter"
doc=$DESTDIR$PREFIX/share/doc/estargz-snapshotter
rm -rf "$doc"
mkdir -p "$doc"
for document in README.md CHANGELOG.md LICENSE docs share/deploy; do
    [ ! -e "$release/$document" ] || cp -Rp "$release/$document" "$doc/"
done
own "$doc"

config=$DESTDIR/etc/estargz/config.toml
[ -e "$config" ] || [ -L "$config" ] || place "$release/share/config.toml" "$config"

# Who runs from a tree: yes, somebody; keeper, the keeper alone, which outlives versions; or no. One in a container with
# such a path counts too, which does no harm.
user_of() {
    user=no
    for exe in /proc/[0-9]*/exe; do
        case $(readlink -- "$exe" 2>/dev/null || :) in
        "$1"/*) ;;
        *) continue ;;
        esac
        if grep -q 'snapshotter\.keeper\.program' "${exe%exe}cmdline" 2>/dev/null; then
            user=keeper
        else
            user=yes
            break
        fi
    done
    echo $user
}
sweep() {
    kept=no
    for tree in "$trees"/* "$trees"/.new.* "$trees"/.old.*; do
        if [ "$tree" = "$trees/$id" ] || [ ! -d "$tree" ]; then
            continue
        fi
        case $(user_of "$tree") in
        yes) kept=$tree ;;
        no) rm -rf "$tree" ;;
        esac
    done
}

say "installed estargz-snapshotter $version in $DESTDIR$PREFIX"
if [ -n "$DESTDIR" ]; then
    sweep
    exit 0
fi

systemd=no
[ ! -d /run/systemd/system ] || systemd=yes
if [ $systemd = yes ]; then
    systemctl daemon-reload
    if [ $restart = yes ]; then
        # Who stands by first: it shall be of this version when it takes over.
        systemctl try-restart estargz-snapshotter-standby.service
        systemctl try-restart estargz-snapshotter.service
    fi
elif [ $restart = yes ]; then
    say "systemd does not run here: restart \`snapshotter serve\` by what started it"
fi
sweep
if [ "$kept" != no ]; then
    say "the version before still runs, from $kept: restart the daemon when it suits"
    say "(systemctl restart estargz-snapshotter); the next installation removes its files"
elif [ $systemd = yes ] && systemctl --quiet is-active estargz-snapshotter.service; then
    say "the daemon runs; \`snapshotter version\` shows its version"
else
    say "next:"
    if [ $systemd = yes ]; then
        say "  systemctl enable --now estargz-snapshotter    start the daemon, now and at each boot"
    else
        say "  snapshotter serve                             start the daemon, by what starts containerd here"
    fi
    say "  snapshotter config containerd --write         tell containerd about it"
    say "  snapshotter doctor                            look whether all is well"
fi
