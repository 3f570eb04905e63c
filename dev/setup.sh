#!/usr/bin/env bash
# Brings a fresh Debian 12 to where tests, demo and benchmarks run: system packages as root, then .venv from the lock.
# `dev/setup.sh build` installs only what building a release needs. Runs in well under a second when nothing is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What each is for: libfuse3's headers build pyfuse3; binutils, with gcc, and patchelf read and relocate what a release
# carries, which is python3 itself with its standard library.
PACKAGES=(libfuse3-dev gcc libc6-dev pkg-config patchelf python3-dev python3-venv ca-certificates)
# containerd and runc run the containers, docker-registry serves the images, stargz-snapshotter brings ctr-remote (the
# other tool's images), skopeo copies foreign images into a registry, erofs-utils checks EROFS images, busybox is the
# pause image and a node without anything, debootstrap makes distributions to install on, attr, acl and libcap2-bin are
# what fidelity is looked at with by hand, xfsprogs and btrfs-progs make the disks of a node that loses power.
if [ "${1:-}" != build ]; then
    PACKAGES+=(containerd runc docker-registry stargz-snapshotter skopeo fuse3 erofs-utils busybox-static debootstrap
        attr acl libcap2-bin xfsprogs btrfs-progs)
fi
# Debian starts these on installation and at boot. The harness runs its own copies, so ours stay off.
SERVICES=(containerd.service docker-registry.service)
LOCK=dev/requirements.lock
STAMP=.venv/.lock

say() { printf 'setup: %s\n' "$*" >&2; }

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done
}

# policy-rc.d is Debian's own switch for "install, but start nothing"; without an init it also spares the error messages.
without_services() {
    local policy=/usr/sbin/policy-rc.d mine=no status=0
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        mine=yes
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    "$@" || status=$?
    if [ "$mine" = yes ]; then
        rm -f "$policy"
        trap - EXIT
    fi
    return "$status"
}

install_packages() {
    local missing service
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "this is not Debian: install fuse3 with headers, gcc, binutils, patchelf, pkg-config and Python 3.11 with venv and"
        say "headers yourself, for tests also containerd 1.6 or later, runc, docker-registry, ctr-remote and a static"
        say "busybox; going on with .venv"
        return
    fi
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "packages are missing and only root can install them; run: sudo apt-get install ${missing[*]}"
        exit 1
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    without_services apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    if command -v systemctl >/dev/null; then
        for service in "${SERVICES[@]}"; do
            if printf '%s\n' "${missing[@]}" | grep -qx "${service%.service}"; then
                systemctl disable "$service" >/dev/null 2>&1 || say "could not switch $service off; it may start at the next boot"
            fi
        done
    fi
}

python_for_venv() {
    local candidate
    for candidate in "${PYTHON:-python3}" /usr/bin/python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "no Python 3.11 or later with venv found; name one with PYTHON=…"
    exit 1
}

install_venv() {
    local wanted python
    wanted="$(sha256sum "$LOCK" pyproject.toml | sha256sum)"
    [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && return
    if [ ! -x .venv/bin/python ]; then
        python="$(python_for_venv)"
        say "creating .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    say "installing the locked dependencies"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$LOCK"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    # A dependency that nobody locked would be missed by the first command that needs it.
    .venv/bin/python -m pip check --disable-pip-version-check >&2
    printf '%s\n' "$wanted" >"$STAMP"
}

# An installation is compiled. Where the environment forbids Python to write, every start would compile it again.
compile_package() {
    .venv/bin/python -m compileall -q snapshotter
}

install_packages
install_venv
compile_package
