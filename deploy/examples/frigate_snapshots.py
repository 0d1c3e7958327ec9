#!/usr/bin/env python3
"""Describes Frigate's snapshots: what it has detected, put into words by edge-runtime on the same broker.

Frigate publishes a JPEG on `frigate/<camera>/<object>/snapshot` for each object that it tracks (mqtt and snapshots must
be on for the camera). This asks edge-runtime about each one and publishes the answer, retained, on
`frigate-described/<camera>/<object>`. Of the snapshots of one camera and object only the newest waits.

    pip install paho-mqtt
    python3 frigate_snapshots.py --host localhost --device box --prompt "What is the person doing?"
"""

from __future__ import annotations

import argparse
import base64
import json
import os
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

REPLIES = f"frigate-described/replies/{os.getpid()}"


class Describer:
    """Passes snapshots to edge-runtime and its answers on; one question at a time."""

    def __init__(self, client: Client, ask: str, prompt: str) -> None:
        """Args: connected or not; the topic of requests; what is asked."""
        self._client, self._ask, self._prompt = client, ask, prompt
        self._waiting: dict[str, bytes] = {}
        self._asked: str | None = None

    def arrived(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        """A snapshot or an answer."""
        if message.topic == REPLIES:
            self._answered(json.loads(message.payload))
            return
        parts = message.topic.split("/")
        self._waiting[f"{parts[-3]}/{parts[-2]}"] = bytes(message.payload)  # the newest alone
        self._next()

    def _answered(self, answer: dict[str, Any]) -> None:
        if self._asked is not None:
            text = answer.get("text") or f"({answer['error']['message']})"
            self._client.publish(f"frigate-described/{self._asked}", text, qos=1, retain=True)
        self._asked = None
        self._next()

    def _next(self) -> None:
        if self._asked is not None or not self._waiting:
            return
        self._asked = next(iter(self._waiting))
        image = base64.b64encode(self._waiting.pop(self._asked)).decode()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = REPLIES
        body = {"prompt": self._prompt, "images": [image], "max_tokens": 80, "deadline_s": 300}
        self._client.publish(self._ask, json.dumps(body), qos=1, properties=properties)


def main() -> None:
    """Runs until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--username")
    parser.add_argument("--device", required=True, help="edge-runtime's mqtt.device")
    parser.add_argument("--prefix", default="edge-runtime", help="edge-runtime's mqtt.prefix")
    parser.add_argument("--frigate", default="frigate", help="Frigate's mqtt.topic_prefix")
    parser.add_argument("--prompt", default="Describe in one sentence what is happening.")
    args = parser.parse_args()

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    if args.username:
        client.username_pw_set(args.username, os.environ.get("MQTT_PASSWORD"))
    describer = Describer(client, f"{args.prefix}/{args.device}/ask", args.prompt)
    client.on_message = describer.arrived
    wanted = [(REPLIES, 1), (f"{args.frigate}/+/+/snapshot", 0)]

    def connected(*_: object) -> None:
        client.subscribe(wanted)  # again after each loss of the connection

    client.on_connect = connected
    client.connect(args.host, args.port)
    client.loop_forever(retry_first_connection=True)


if __name__ == "__main__":
    main()
