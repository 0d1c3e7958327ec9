"""paho's client, set up for one version of MQTT: credentials, TLS, last will, what we tell a broker when we connect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings_file import secret

if TYPE_CHECKING:
    from edge_runtime.daemon.topics import Topics
    from edge_runtime.settings import MqttSettings

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
VERSION_NAMES = {V5: "v5", V311: "v3.1.1"}

QOS = 1
ONLINE, OFFLINE = "online", "offline"
# How long a broker keeps what arrives for us while we are away.
SESSION_EXPIRY_S = 3600
# Answers and news on their way to the broker at a time; fewer where a broker asks for fewer.
IN_FLIGHT = 20
# A broker may send a packet this many times the payload limit, to be told `too_large`; it keeps back what is larger.
PACKET_HEADROOM = 2
LARGEST_PACKET = 268_435_455
CONNECT_TIMEOUT_S = 5.0


def make_client(settings: MqttSettings, topics: Topics, version: MQTTProtocolVersion) -> Client:
    """A client that is not connected yet. It acknowledges nothing by itself.

    Raises:
        EdgeRuntimeError: The password or the CA file cannot be read.
    """
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"{settings.prefix}-{settings.device}".replace("/", "-"),
        clean_session=False if version == V311 else None,
        protocol=version,
        manual_ack=True,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.max_inflight_messages_set(IN_FLIGHT)
    set_password(client, settings)
    if settings.tls_ca is not None:
        try:
            client.tls_set(ca_certs=str(settings.tls_ca))
        except OSError as error:
            raise EdgeRuntimeError(f"mqtt.tls_ca {settings.tls_ca}: {error.strerror or error}") from None
    will = None
    if version == V5:
        will = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=settings.will_delay_s)
    client.will_set(topics("status"), OFFLINE, QOS, retain=True, properties=will)
    return client


def set_password(client: Client, settings: MqttSettings) -> None:
    """Gives the client its credentials, the password as it stands in its file now.

    Raises:
        EdgeRuntimeError: The file cannot be read.
    """
    if settings.username is not None:
        file = settings.password_file
        client.username_pw_set(settings.username, None if file is None else secret("mqtt.password_file", file))


def connect_arguments(settings: MqttSettings, payload_bytes: int, version: MQTTProtocolVersion) -> dict[str, Any]:
    """Arguments of `Client.connect` beside host, port and keepalive."""
    if version != V5:
        return {}
    told = properties(
        PacketTypes.CONNECT,
        SessionExpiryInterval=SESSION_EXPIRY_S,
        ReceiveMaximum=settings.receive_maximum,
        MaximumPacketSize=min(PACKET_HEADROOM * payload_bytes, LARGEST_PACKET),
    )
    return {"clean_start": False, "properties": told}


def properties(packet: int, **values: Any) -> Properties:
    """MQTT v5 properties; those that are None are left out."""
    packed = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(packed, name, value)
    return packed
