#!/bin/sh
# A Debian 12 for arm64 with the aarch64 wheels of PyPI, run by qemu's user mode: the built-in model is exported and asked
# there, its int8 kernels are looked for, then the core of the tests runs. Needs root.
# Usage: scripts/test-arm64.sh [tests]   ($EDGE_RUNTIME_ARM64: the Debian's folder, kept between runs; build/arm64)
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test-arm64: needs root (chroot)" >&2; exit 1; }
arm=${EDGE_RUNTIME_ARM64:-$PWD/build/arm64}
root=$arm/root
# Of the engine's tests those that hold its numbers and its memory; all of them would take hours in qemu.
core="tests/engine/test_golden.py tests/engine/test_chunks.py tests/engine/test_encoders.py tests/engine/test_kv_cache.py
    tests/engine/test_memory.py tests/gemma tests/bundle"
# Qemu's own memory counts in what a process takes there, so three comparisons with the memory plan mean nothing.
core="$core --deselect tests/engine/test_memory.py::test_other_shapes_stay_within_theirs"

missing=""
command -v debootstrap >/dev/null || missing="$missing debootstrap"
[ -e /usr/bin/qemu-aarch64-static ] || missing="$missing qemu-user-static binfmt-support"
command -v unzip >/dev/null || missing="$missing unzip"
if [ -n "$missing" ]; then
    apt-get update -qq >/dev/null 2>&1 || true
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing >/dev/null
fi
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

# Packages are unpacked and not configured, which would take a quarter of an hour in qemu: Python needs no more.
if [ ! -e "$arm/ready" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libportaudio2 bookworm "$root" \
        http://deb.debian.org/debian >"$arm/log" || { tail -n 3 "$arm/log" >&2; exit 1; }
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
    touch "$arm/ready"
fi
rm -rf "$arm/wheels" "$root/opt" "$root/tmp" "$root/sys"
PYTHON=.venv/bin/python deploy/install.sh --make-wheelhouse "$arm/wheels" --platform aarch64 --python 3.11
.venv/bin/python -m pip download -q --only-binary=:all: --platform manylinux2014_aarch64 --python-version 3.11 \
    --implementation cp --abi cp311 --abi abi3 --abi none -d "$arm/wheels" pytest hypothesis jsonschema
mkdir -m 1777 "$root/tmp"
mkdir -p "$root/opt/site" "$root/opt/source"
for wheel in "$arm"/wheels/*.whl; do
    case $wheel in
    */edge_runtime-*) unzip -qo "$wheel" '*.dist-info/*' -d "$root/opt/site" ;; # what it is; the tests run the source
    *) unzip -qo "$wheel" -d "$root/opt/site" ;;
    esac
done
cp -r edge_runtime models tests benchmarks docs pyproject.toml "$root/opt/source/"

# Not this machine's /sys: ONNX Runtime would read of its processors there, and dies of it. Of a board's it reads this.
mkdir -p "$root/sys/devices/system/cpu"
for list in possible present; do echo 0-3 >"$root/sys/devices/system/cpu/$list"; done
trap 'umount "$root/dev" "$root/proc" 2>/dev/null || true' EXIT
for folder in proc dev; do mountpoint -q "$root/$folder" || mount --bind "/$folder" "$root/$folder"; done
inside() {
    nice chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/opt/site:/opt/source \
        PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 EDGE_RUNTIME_CACHE=/tmp/cache "$@"
}
tests() {
    inside "QEMU_CPU=$1" sh -c "cd /opt/source && python3 -m pytest -p no:cacheprovider $2"
}
inside python3 -c 'import platform; assert platform.machine() == "aarch64"'

# The kernels for four-bit weights, by how exact they are: on a processor without dot products, on one with them as in a
# Raspberry Pi 5, on one with all that qemu knows. Then by their instructions, in the log of what qemu translated.
for processor in cortex-a53 cortex-a76 max; do
    echo "test-arm64: four-bit weights on $processor"
    tests "$processor" tests/engine/test_arm64.py
done
inside QEMU_CPU=max QEMU_LOG=in_asm QEMU_LOG_FILENAME=/tmp/asm sh -c \
    "cd /opt/source && python3 -m pytest -p no:cacheprovider tests/engine/test_arm64.py" >/dev/null
sdot=$(grep -cE ': +(4e[89][0-9a-f]9[4-7]|4f[89ab][0-9a-f]e[0-389ab])[0-9a-f]{2} ' "$root/tmp/asm" || true)
smmla=$(grep -cE ': +4e[89][0-9a-f]a[4-7][0-9a-f]{2} ' "$root/tmp/asm" || true)
rm "$root/tmp/asm"
[ "$sdot" -gt 0 ] && [ "$smmla" -gt 0 ] || { echo "test-arm64: $sdot sdot, $smmla smmla: no int8 kernels" >&2; exit 1; }
echo "test-arm64: executed from int8 kernels: $sdot places with sdot, $smmla with smmla"

answer=$(inside QEMU_CPU=max sh -c "cd /opt/source && python3 -m edge_runtime ask 'When does the zoo open?'" 2>"$arm/log") ||
    tail -n 3 "$arm/log" >&2
[ "$answer" = "The zoo opens at 9 am." ] || { echo "test-arm64: the model said: $answer" >&2; exit 1; }
echo "test-arm64: exported and asked on aarch64: $answer"
# shellcheck disable=SC2086
tests max "$(echo ${*:-$core})"
