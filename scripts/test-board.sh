#!/bin/sh
# A Debian 12 in build/board, with a wheelhouse in it, and the tests of the installed service there. Needs root.
# Usage: scripts/test-board.sh [arguments of pytest]
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test-board: needs root (systemd-nspawn)" >&2; exit 1; }
board=$PWD/build/board

missing=""
command -v debootstrap >/dev/null || missing="$missing debootstrap"
command -v systemd-nspawn >/dev/null || missing="$missing systemd-container"
command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
command -v mke2fs >/dev/null || missing="$missing e2fsprogs"
command -v mosquitto >/dev/null || missing="$missing mosquitto"
# shellcheck disable=SC2086
[ -z "$missing" ] || DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing >/dev/null

packages=systemd,systemd-sysv,dbus,python3,python3-venv,mosquitto,libportaudio2,iproute2,procps
if [ ! -e "$board/ready" ]; then
    rm -rf "$board"
    mkdir -p "$board"
    debootstrap --variant=minbase --include=$packages bookworm "$board/root" http://deb.debian.org/debian >"$board/log"
    touch "$board/ready"
fi
wheels=$board/root/opt/wheelhouse
PYTHON=.venv/bin/python deploy/install.sh --make-wheelhouse "$wheels" --platform "$(uname -m)" --python 3.11 --extras camera
cp tests/board/hang.py "$wheels"
# Two machines, one whose power is cut and one with a screen, are emulated and made for x86-64 alone.
if [ "$(uname -m)" = x86_64 ]; then
    scripts/board-machine.sh "$board/root" "$board/machine"
    EDGE_RUNTIME_MACHINE=$board/machine
    scripts/board-screen.sh "$board/root" "$board/screen"
    EDGE_RUNTIME_SCREEN=$board/screen
    export EDGE_RUNTIME_MACHINE EDGE_RUNTIME_SCREEN
fi
EDGE_RUNTIME_BOARD=$board/root .venv/bin/python -m pytest tests/board -m slow -rP "$@"
