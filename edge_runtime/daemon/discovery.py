"""Tells Home Assistant what the box has: MQTT device discovery, one retained message for all of it.

The format is that of https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload. Buttons, texts and
notifications send what any client of this daemon sends; sensors read its own topics.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.daemon.mqtt import Link
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)

BIRTH = b"online"
MAX_STATE = 255
"""Characters that a state of Home Assistant may have; the whole is in the entity's attributes."""
_SHORT = f"[:{MAX_STATE}]"
_ANSWER = "{{ (value_json.text if value_json.text is defined else value_json.error.message)" + _SHORT + " }}"
_QUESTION = "{{ {'prompt': value, 'session': 'home-assistant'} | tojson }}"


def announce(settings: Settings, info: dict[str, Any], link: Link, marker: Path, *, voice: bool) -> None:
    """Announces the box, now and whenever Home Assistant starts; or takes back what an earlier run has announced.

    Args:
        settings: `mqtt.discovery`, and what there is to announce.
        info: What the topic `info` says.
        link: Not started yet.
        marker: A file that remembers where something was announced.
        voice: Whether the box can speak.
    """
    prefix = settings.mqtt.discovery_prefix
    topic = f"{prefix}/device/{_id(settings)}/config" if settings.mqtt.discovery else ""
    before = marker.read_text(encoding="utf-8") if marker.is_file() else ""
    if before and before != topic:
        link.retain(before, "")  # an empty retained message removes all that was announced there
        log.info("taken back from Home Assistant: %s", before)
    try:
        if topic:
            marker.write_text(topic, encoding="utf-8")
        else:
            marker.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: %s: what is announced to Home Assistant cannot be taken back later", marker, error.strerror)
    if not topic:
        return
    payload = json.dumps(device(settings, info, voice=voice), ensure_ascii=False)
    link.retain(topic, payload)

    def born(said: bytes) -> None:
        if said == BIRTH:
            link.retain(topic, payload)

    link.hear(f"{prefix}/status", born)


def device(settings: Settings, info: dict[str, Any], *, voice: bool) -> dict[str, Any]:
    """The announcement: the device, and its entities under `components`."""
    base = f"{settings.mqtt.prefix}/{settings.mqtt.device}"
    entities: dict[str, dict[str, Any]] = {
        "answer": _sensor("Answer", f"{base}/answer", _ANSWER, icon="mdi:message-reply-text"),
        "question": {
            "platform": "text",
            "name": "Question",
            "command_topic": f"{base}/ask",
            "command_template": _QUESTION,
            "max": MAX_STATE,
            "icon": "mdi:message-question",
        },
    }
    if voice:
        entities["say"] = {"platform": "notify", "name": "Say", "command_topic": f"{base}/say"}
    for microphone in settings.microphones:
        entities |= _microphone(base, microphone.name)
    for camera in settings.cameras:
        entities |= _camera(base, camera.name, watched=camera.interval_s is not None)
    whole = _id(settings)
    for key, entity in entities.items():
        entity["unique_id"] = f"{whole}_{key}"
    return {
        "device": {
            "identifiers": [whole],
            "name": settings.mqtt.device,
            "manufacturer": "edge-runtime",
            "model": info["model"],
            "sw_version": info["version"],
        },
        "origin": {"name": "edge-runtime", "sw_version": info["version"]},
        "availability": [{"topic": f"{base}/status"}],
        "qos": 1,
        "components": entities,
    }


def _microphone(base: str, name: str) -> dict[str, dict[str, Any]]:
    key = _slug(name)
    mine = f"value_json.microphone == {json.dumps(name)} and value_json.text is defined"
    heard = "{{ value_json.text" + _SHORT + " if " + mine + " else this.state }}"
    return {
        f"heard_{key}": _sensor(f"Heard {name}", f"{base}/event/transcript", heard, icon="mdi:microphone-message"),
        f"listen_{key}": _button(f"Listen {name}", f"{base}/ask", {"audio": {"microphone": name}}, "mdi:microphone"),
        f"microphone_{key}": _connected(f"Microphone {name}", f"{base}/microphone/{name}/status"),
    }


def _camera(base: str, name: str, *, watched: bool) -> dict[str, dict[str, Any]]:
    key = _slug(name)
    entities = {
        f"describe_{key}": _button(f"Describe {name}", f"{base}/describe", {"camera": name}, "mdi:image-text"),
        f"camera_{key}": _connected(f"Camera {name}", f"{base}/camera/{name}/status"),
    }
    if watched:
        topic = f"{base}/camera/{name}/answer"
        entities[f"seen_{key}"] = _sensor(f"Seen {name}", topic, "{{ value_json.text" + _SHORT + " }}", icon="mdi:eye")
    return entities


def _sensor(name: str, topic: str, template: str, icon: str) -> dict[str, Any]:
    return {
        "platform": "sensor",
        "name": name,
        "state_topic": topic,
        "value_template": template,
        "json_attributes_topic": topic,
        "icon": icon,
    }


def _button(name: str, topic: str, payload: dict[str, Any], icon: str) -> dict[str, Any]:
    press = json.dumps(payload, ensure_ascii=False)
    return {"platform": "button", "name": name, "command_topic": topic, "payload_press": press, "icon": icon}


def _connected(name: str, topic: str) -> dict[str, Any]:
    return {
        "platform": "binary_sensor",
        "name": name,
        "state_topic": topic,
        "payload_on": "online",
        "payload_off": "offline",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }


def _id(settings: Settings) -> str:
    """The device's name for Home Assistant: letters, digits, `_` and `-`."""
    return _slug(f"{settings.mqtt.prefix}-{settings.mqtt.device}")


def _slug(name: str) -> str:
    """`name` in the letters that are allowed; two names never become one."""
    plain = re.sub(r"[^a-zA-Z0-9_-]", "-", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"
