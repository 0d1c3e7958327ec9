"""Says by zeroconf (multicast DNS) that a service is there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

import ifaddr
from zeroconf import InterfaceChoice
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from edge_runtime.daemon.http.guard import is_loopback

if TYPE_CHECKING:
    from collections.abc import Sequence


class Announcement:
    """A service that can be found, as long as the context lasts.

    Example:
        async with Announcement("box", "_wyoming._tcp.local.", 10300) as announcement:
            await announcement.renew()
    """

    def __init__(self, name: str, domain: str, port: int, interfaces: Sequence[str] | None = None) -> None:
        """Prepares.

        Args:
            name: Of this service among those of its kind.
            domain: The kind.
            port: Where it listens.
            interfaces: Addresses on which it is told; None: all but loopback.
        """
        self._name, self._domain, self._port, self._interfaces = name, domain, port, interfaces
        self._told: list[str] = []
        self._zeroconf: AsyncZeroconf | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._withdraw()

    async def renew(self) -> None:
        """Tells it, unless it has been told for the addresses that the box has now.

        Raises:
            OSError: There is no network.
        """
        addresses = self._addresses()
        if addresses == self._told:
            return
        await self._withdraw()
        if not addresses:
            return
        self._zeroconf = AsyncZeroconf(interfaces=self._interfaces or InterfaceChoice.All)
        info = AsyncServiceInfo(
            self._domain,
            f"{self._name}.{self._domain}",
            port=self._port,
            addresses=[socket.inet_aton(address) for address in addresses],
            server=f"{self._name}.local.",
        )
        await self._zeroconf.async_register_service(info, allow_name_change=True)
        self._told = addresses

    def _addresses(self) -> list[str]:
        if self._interfaces is not None:
            return list(self._interfaces)
        found = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
        return sorted(address for address in found if not is_loopback(address))

    async def _withdraw(self) -> None:
        self._told = []
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None
