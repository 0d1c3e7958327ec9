"""Asks the daemon on a broker at localhost, and prints what it hears: `client.py [USER PASSWORD]`."""

from __future__ import annotations

import json
import socket

from tests.conftest import MqttClient


def main() -> None:
    client = MqttClient(1883)
    base = f"edge-runtime/{socket.gethostname()}"
    client.subscribe(f"{base}/#")
    client.wait(f"{base}/status", lambda message: message.payload == b"online", timeout_s=60)
    client.publish(f"{base}/ask", json.dumps({"prompt": "When does the zoo open?"}))
    print(json.loads(client.wait(f"{base}/answer", timeout_s=60).payload)["text"])
    client.close()


if __name__ == "__main__":
    main()
