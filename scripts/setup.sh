#!/bin/sh
# Makes .venv with everything that `make demo` and `make test` need, and installs Debian packages where it may.
# Usage: scripts/setup.sh EXTRAS   (such as dev,demo). Speaks only when something is installed or missing.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extras=$1

fail() {
    echo "setup: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "python3 is missing: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" -V) is too old: Python 3.11 or later is needed"

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root=none
fi

# What pip cannot bring. Left out of $wanted: what is here already, by whatever way it came.
PATH="$PATH:/usr/sbin:/sbin"
wanted=""
[ -x .venv/bin/python ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || wanted="python3-venv"
command -v mosquitto >/dev/null || wanted="$wanted mosquitto"
ldconfig -p 2>/dev/null | grep -q libportaudio.so.2 || wanted="$wanted libportaudio2"
case ,$extras, in
*,test-browser,*)
    command -v chromium >/dev/null || wanted="$wanted chromium"
    command -v espeak-ng >/dev/null || wanted="$wanted espeak-ng"
    [ -n "$(fc-list :lang=zh 2>/dev/null)" ] || wanted="$wanted fontconfig fonts-wqy-microhei" # for the pictures
    ;;
esac

if [ -n "$wanted" ] && [ "$as_root" != none ] && command -v apt-get >/dev/null; then
    echo "setup: installing" $wanted
    # A list of packages that is out of date is no reason to stop if the install then works.
    $as_root apt-get update -qq >/dev/null 2>&1 || true
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $wanted >/dev/null 2>.setup.log ||
        { tail -n 3 .setup.log >&2; rm -f .setup.log; fail "apt-get could not install $wanted"; }
    rm -f .setup.log
elif [ -n "$wanted" ]; then
    case $wanted in
    *python3-venv*) fail "no root here: ask for apt-get install python3-venv, then try again" ;;
    *) echo "setup: not installed, for want of root:" $wanted "(the demo brings its own broker; microphones need libportaudio2)" ;;
    esac
fi

echo "setup: installing Python packages into .venv"
[ -x .venv/bin/python ] || "$python" -m venv .venv
PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q -e ".[$extras]"
