#!/bin/sh
# A disk image with the installed service, and a kernel for it, for the power cuts of tests/board/test_power.py.
# Usage: scripts/board-machine.sh ROOT FOLDER   (ROOT: a Debian with the wheelhouse in /opt/wheelhouse)
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
    inside "apt-get update -qq && apt-get install -qq -y --no-install-recommends linux-image-cloud-amd64 initramfs-tools zstd && apt-get clean" >"$machine/log" 2>&1
    cp "$machine"/root/boot/vmlinuz-* "$machine"/root/boot/initrd.img-* "$machine/"
    touch "$machine/ready"
fi
# What is tested is what the source tree holds now.
rm -rf "$machine/root/opt" "$machine/root/var/lib/private/edge-runtime"
mkdir -p "$machine/root/opt"
cp -a "$root/opt/wheelhouse" "$machine/root/opt/"
inside "sh /opt/wheelhouse/install.sh"
rm -rf "$machine/root/opt/wheelhouse"
etc=$machine/root/etc
# 10.0.2.2 is the machine that qemu runs on.
printf '[mqtt]\nhost = "10.0.2.2"\nport = 18831\ndevice = "box"\n[limits]\nqueue = 200\nper_client = 200\n' >"$etc/edge-runtime/config.toml"
cat >"$etc/systemd/system/lan.service" <<'UNIT'
[Unit]
Before=edge-runtime.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c "card=$$(ls /sys/class/net | grep -v lo | head -n 1); ip link set $$card up; ip address add 10.0.2.15/24 dev $$card"
UNIT
wants=$etc/systemd/system/multi-user.target.wants
mkdir -p "$wants"
ln -sf /etc/systemd/system/lan.service /etc/systemd/system/edge-runtime.service "$wants/"
rm -f "$wants/mosquitto.service"
echo "/dev/vda / ext4 defaults 0 1" >"$etc/fstab"
rm -f "$machine/root.img"
mke2fs -q -t ext4 -d "$machine/root" "$machine/root.img" 3G
