#!/bin/sh
# A Debian 12 for arm64 in build/arm64 with the aarch64 wheels of PyPI, run by qemu's user mode: the built-in model is
# exported and asked there, then the core of the tests runs. Needs root.
# Usage: scripts/test-arm64.sh [folders of tests]
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test-arm64: needs root (chroot)" >&2; exit 1; }
arm=$PWD/build/arm64
root=$arm/root

missing=""
command -v debootstrap >/dev/null || missing="$missing debootstrap"
[ -e /usr/bin/qemu-aarch64-static ] || missing="$missing qemu-user-static binfmt-support"
command -v unzip >/dev/null || missing="$missing unzip"
# shellcheck disable=SC2086
[ -z "$missing" ] || DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing >/dev/null
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

# Packages are unpacked and not configured, which would take a quarter of an hour in qemu: Python needs no more.
if [ ! -e "$arm/ready" ]; then
    rm -rf "$arm"
    mkdir -p "$root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libportaudio2 bookworm "$root" \
        http://deb.debian.org/debian >"$arm/log"
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
    touch "$arm/ready"
fi
rm -rf "$arm/wheels" "$root/opt"
PYTHON=.venv/bin/python deploy/install.sh --make-wheelhouse "$arm/wheels" --platform aarch64 --python 3.11
.venv/bin/python -m pip download -q --only-binary=:all: --platform manylinux2014_aarch64 --python-version 3.11 \
    --implementation cp --abi cp311 --abi abi3 --abi none -d "$arm/wheels" pytest hypothesis jsonschema
mkdir -p "$root/opt/site" "$root/opt/source"
for wheel in "$arm"/wheels/*.whl; do
    case $wheel in */edge_runtime-*) ;; *) unzip -qo "$wheel" -d "$root/opt/site" ;; esac
done
cp -r edge_runtime models tests benchmarks docs pyproject.toml "$root/opt/source/"

# Not /sys: ONNX Runtime would read of the processors of this machine there, and dies of it.
trap 'umount "$root/dev" "$root/proc" 2>/dev/null || true' EXIT
for folder in proc dev; do mount --bind "/$folder" "$root/$folder"; done
inside() {
    nice chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/opt/site:/opt/source \
        PYTHONDONTWRITEBYTECODE=1 EDGE_RUNTIME_CACHE=/tmp/cache sh -c "cd /opt/source && $1"
}
inside "python3 -c 'import platform; assert platform.machine() == \"aarch64\"'"
answer=$(inside "python3 -m edge_runtime ask 'When does the zoo open?' 2>/dev/null")
[ "$answer" = "The zoo opens at 9 am." ] || { echo "test-arm64: the model said: $answer" >&2; exit 1; }
echo "test-arm64: exported and asked on aarch64: $answer"
inside "python3 -m pytest -p no:cacheprovider ${*:-tests/gemma tests/bundle tests/engine --ignore=tests/engine/llama}"
