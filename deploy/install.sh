#!/bin/sh
# Installs edge-runtime as a service, upgrades it, takes it away; from the network, or from a folder of wheels that it
# can make on another machine.
set -eu

usage() {
    cat <<END
usage: install.sh [--wheelhouse DIR] [--extras LIST] [--kiosk] [--no-start]
           installs, or upgrades: settings and state stay, and the old version comes back if the new one does not start;
           with --kiosk the page on this box's own screen, too, with Debian's cage and chromium
       install.sh --uninstall [--purge]
           takes it away; with --purge settings, secrets and state as well
       install.sh --make-wheelhouse DIR [--platform aarch64|x86_64] [--python 3.11] [--extras LIST]
           a folder that holds all that an installation without network needs, this script included
Extras: camera, wake (default: camera,wake). PYTHON names another interpreter than python3.
END
}

name=edge-runtime
prefix=/opt/$name
etc=/etc/$name
units=/etc/systemd/system
kiosk=$name-kiosk
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
action=install extras=camera,wake wheelhouse="" platform="" version="" purge="" start=yes screen=""

fail() {
    echo "install: $1" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --wheelhouse | --make-wheelhouse | --platform | --python | --extras) [ $# -gt 1 ] || fail "$1 needs a value" ;;
    esac
    case $1 in
    --wheelhouse) wheelhouse=$2 && shift ;;
    --make-wheelhouse) action=wheelhouse wheelhouse=$2 && shift ;;
    --platform) platform=$2 && shift ;;
    --python) version=$2 && shift ;;
    --extras) extras=$2 && shift ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --no-start) start="" ;;
    --kiosk) screen=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
    shift
done

# Where the units and the example of the settings lie: beside the script in a wheelhouse, else in the source tree.
if [ -f "$here/$name.service" ]; then files=$here source=""; else files=$here/../systemd source=$here/..; fi
settings=$here/config.toml

with_systemd() {
    [ -d /run/systemd/system ]
}

make_wheelhouse() {
    [ -n "$source" ] || fail "a wheelhouse is made from the source tree"
    mkdir -p "$wheelhouse"
    rm -f "$wheelhouse"/*.whl
    "$python" -m pip wheel -q --no-deps -w "$wheelhouse" "$source"
    own=$(ls "$wheelhouse"/edge_runtime-*.whl)
    set -- -q --only-binary=:all: -d "$wheelhouse"
    if [ -n "$platform$version" ]; then
        platform=${platform:-$(uname -m)} version=${version:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
        digits=$(echo "$version" | tr -d .)
        set -- "$@" --implementation cp --python-version "$version" --abi "cp$digits" --abi abi3 --abi none
        for tag in 2014 _2_17 _2_26 _2_27 _2_28 _2_31 _2_34 _2_35 _2_36; do
            set -- "$@" --platform "manylinux${tag}_$platform"
        done
    fi
    "$python" -m pip download "$@" "$own[$extras]" pip
    cp "$here/install.sh" "$settings" "$files/$name.service" "$files/$kiosk.service" "$wheelhouse/"
    echo "$extras" >"$wheelhouse/extras"
    echo "install: $(ls "$wheelhouse"/*.whl | wc -l) wheels, $(du -sh "$wheelhouse" | cut -f1), in $wheelhouse; there: sh install.sh"
}

debian_packages() {
    wanted=""
    "$python" -c 'import ensurepip, venv' 2>/dev/null || wanted="python3-venv"
    ldconfig -p | grep -q libportaudio.so.2 || wanted="$wanted libportaudio2"
    [ -n "$wanted" ] || return 0
    fetch && return 0
    case $wanted in *python3-venv*) fail "python3-venv is missing: apt-get install python3-venv" ;; esac
    echo "install: libportaudio2 is missing: microphones do not work until apt-get install libportaudio2" >&2
}

kiosk_packages() {
    wanted=""
    for program in cage chromium seatd Xwayland; do
        command -v $program >/dev/null || wanted="$wanted $(echo $program | tr X x)"
    done
    [ -z "$wanted" ] || fetch || fail "the page on the screen needs$wanted: apt-get install$wanted"
    [ -x /usr/bin/chromium ] || fail "the page on the screen needs /usr/bin/chromium, as Debian has it"
}

fetch() {
    command -v apt-get >/dev/null || return 1
    echo "install: installing" $wanted
    # Lists of packages that are missing or out of date: a new box has such.
    { apt_install || { apt-get update -qq && apt_install; }; } >/dev/null 2>&1
}

apt_install() {
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $wanted
}

install_or_upgrade() {
    [ "$(id -u)" = 0 ] || fail "an installation needs root"
    command -v "$python" >/dev/null || fail "$python is missing: apt-get install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" -V) is too old: 3.11 or later is needed; name one with PYTHON=..."
    debian_packages
    [ -z "$screen" ] || kiosk_packages
    [ -n "$wheelhouse" ] || [ -n "$source" ] || wheelhouse=$here
    release=$prefix/releases/$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$prefix/releases"
    trap 'rm -rf "$release"' EXIT
    "$python" -m venv "$release"
    if [ -n "$wheelhouse" ]; then
        own=$(ls "$wheelhouse"/edge_runtime-*.whl 2>/dev/null) || fail "$wheelhouse holds no wheel of edge-runtime"
        [ -f "$wheelhouse/extras" ] && extras=$(cat "$wheelhouse/extras")
        set -- --no-index --find-links "$wheelhouse" "$own[$extras]"
    else
        set -- "$source[$extras]"
    fi
    "$release/bin/python" -m pip install -q --disable-pip-version-check --no-compile "$@"
    "$release/bin/edge-runtime" --version >/dev/null
    "$release/bin/python" -m compileall -q "$release/lib" >/dev/null || true
    before=$(readlink "$prefix/venv" 2>/dev/null || true)
    switch_to "$release"
    trap - EXIT
    mkdir -p "$etc/secrets"
    chmod 700 "$etc/secrets"
    [ -e "$etc/config.toml" ] || install -m 644 "$settings" "$etc/config.toml"
    install -m 644 "$files/$name.service" "$units/"
    if [ -n "$screen" ] || [ -e "$units/$kiosk.service" ]; then
        install -m 644 "$files/$kiosk.service" "$units/"
    fi
    ln -sf "$prefix/venv/bin/$name" /usr/local/bin/$name
    "$prefix/venv/bin/$name" doctor --write-limits --quiet >/dev/null || true
    if with_systemd; then
        systemctl daemon-reload
        systemctl enable -q $name
        if [ -n "$start" ] && ! systemctl restart $name; then
            [ -n "$before" ] || fail "it is installed and does not start: journalctl -u $name"
            switch_to "$before"
            systemctl restart $name || true
            fail "the new version does not start, the one before is back: journalctl -u $name"
        fi
        [ -z "$screen" ] || systemctl enable -q $kiosk
        [ -z "$start" ] || [ ! -e "$units/$kiosk.service" ] || restart_kiosk
    fi
    for old in "$prefix"/releases/*; do
        [ "$old" = "$release" ] || [ "$old" = "$before" ] || rm -rf "$old"
    done
    echo "install: $("$prefix/venv/bin/$name" --version) is installed; settings: $etc/config.toml; check: $name doctor"
}

# An upgrade lets the page be where it was switched off.
restart_kiosk() {
    if [ -n "$screen" ]; then verb=restart; else verb=try-restart; fi
    systemctl $verb $kiosk || echo "install: the page on the screen does not start: journalctl -u $kiosk" >&2
}

# A link is replaced in one step: whatever happens, one version or the other is there.
switch_to() {
    ln -sfn "$1" "$prefix/venv.new"
    mv -T "$prefix/venv.new" "$prefix/venv"
}

uninstall() {
    [ "$(id -u)" = 0 ] || fail "this needs root"
    if with_systemd; then
        for one in $kiosk $name; do systemctl disable -q --now $one 2>/dev/null || true; done
    fi
    for one in $kiosk $name; do rm -rf "$units/$one.service" "$units/$one.service.d"; done
    rm -rf "$prefix" /usr/local/bin/$name
    if with_systemd; then systemctl daemon-reload; fi
    if [ -n "$purge" ]; then
        rm -rf "$etc" /var/lib/private/$name /var/lib/$name
        echo "install: taken away, with settings and state"
    else
        echo "install: taken away; settings stay in $etc, state in /var/lib/$name (--purge takes them too)"
    fi
}

case $action in
wheelhouse) make_wheelhouse ;;
uninstall) uninstall ;;
install) install_or_upgrade ;;
esac
