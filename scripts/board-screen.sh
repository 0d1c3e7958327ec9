#!/bin/sh
# A disk image of a box with a screen: the service, its page in Chromium, and a shell for the tests of
# tests/board/test_screen.py. Usage: scripts/board-screen.sh ROOT FOLDER   (ROOT: as for board-machine.sh)
set -eu
root=$1 machine=$2
inside() {
    nice unshare --mount chroot "$machine/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        DEBIAN_FRONTEND=noninteractive sh -c "mount -t proc proc /proc && $1"
}
if [ ! -e "$machine/ready" ]; then
    rm -rf "$machine"
    mkdir -p "$machine"
    cp -a "$root" "$machine/root"
    cp /etc/resolv.conf "$machine/root/etc/resolv.conf"
    # Not the cloud's kernel: it has no screens.
    inside "apt-get update -qq && apt-get install -qq -y --no-install-recommends linux-image-amd64 initramfs-tools zstd && apt-get clean" >"$machine/log" 2>&1
    cp "$machine"/root/boot/vmlinuz-* "$machine"/root/boot/initrd.img-* "$machine/"
    touch "$machine/ready"
fi
rm -rf "$machine/root/opt" "$machine/root/var/lib/private/edge-runtime"
mkdir -p "$machine/root/opt"
cp -a "$root/opt/wheelhouse" "$machine/root/opt/"
inside "sh /opt/wheelhouse/install.sh --kiosk && apt-get clean"
rm -rf "$machine"/root/opt/wheelhouse/*.whl
cp tests/board/shell.py "$machine/root/opt/"
etc=$machine/root/etc
units=$etc/systemd/system
printf '[kiosk]\nsuggestions = ["When does the zoo open?"]\n' >"$etc/edge-runtime/config.toml"
cat >"$units/lan.service" <<'UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c "card=$$(ls /sys/class/net | grep -v lo | head -n 1); ip link set $$card up; ip address add 10.0.2.15/24 dev $$card"
UNIT
cat >"$units/shell.service" <<'UNIT'
[Unit]
Wants=lan.service
After=lan.service
[Service]
ExecStart=/usr/bin/python3 /opt/shell.py
UNIT
# The emulated screen has no graphics processor.
mkdir -p "$units/edge-runtime-kiosk.service.d" "$units/multi-user.target.wants"
printf '[Service]\nEnvironment=WLR_RENDERER=pixman\n' >"$units/edge-runtime-kiosk.service.d/test.conf"
for unit in shell edge-runtime edge-runtime-kiosk; do
    ln -sf "/etc/systemd/system/$unit.service" "$units/multi-user.target.wants/"
done
rm -f "$units/multi-user.target.wants/mosquitto.service"
echo "/dev/vda / ext4 defaults 0 1" >"$etc/fstab"
rm -f "$machine/root.img"
mke2fs -q -t ext4 -d "$machine/root" "$machine/root.img" 5G
