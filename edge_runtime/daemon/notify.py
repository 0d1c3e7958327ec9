"""Tells systemd how the daemon is, by the protocol of sd_notify(3). Does nothing outside a `Type=notify` unit."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Sends one state, such as `READY=1` or `STOPPING=1`. A missing or deaf socket is not our problem: never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return
