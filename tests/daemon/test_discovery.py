from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from edge_runtime.daemon.discovery import announce, device
from edge_runtime.daemon.requests import Parser
from edge_runtime.settings import MqttSettings, Settings
from edge_runtime.settings_senses import CameraSettings, MicrophoneSettings

MICROPHONES = (MicrophoneSettings("kitchen"),)
CAMERAS = (CameraSettings("door", "x"), CameraSettings("küche", "x", interval_s=5))
INFO = {"version": "1.2", "model": "nano"}


def tree(*, discovery=True, name="box"):
    mqtt = MqttSettings(device=name, discovery=discovery)
    return Settings(mqtt=mqtt, microphones=MICROPHONES, cameras=CAMERAS)


class Link:
    def __init__(self):
        self.retained = []
        self.heard = {}

    def retain(self, topic, payload):
        self.retained.append((topic, payload))

    def hear(self, topic, heard):
        self.heard[topic] = heard


def announced(settings, folder):
    link: Any = Link()
    announce(settings, INFO, link, folder / "marker", voice=False)
    return link


@pytest.fixture
def entities():
    return device(tree(), INFO, voice=True)["components"]


def rendered(template, value="", **more):
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    environment = jinja2.Environment(autoescape=False)
    return environment.from_string(template).render(value=value, value_json=parsed, **more)


def test_every_entity_has_a_name_of_its_own_in_allowed_letters(entities):
    ids = [entity["unique_id"] for entity in entities.values()]
    assert len(set(ids)) == len(ids) == 11
    assert all(each.isascii() and " " not in each for each in ids)
    assert {entity["platform"] for entity in entities.values()} == {
        "sensor", "binary_sensor", "button", "text", "notify",
    }  # fmt: skip


def test_what_buttons_and_texts_send_are_requests(entities):
    parser = Parser(tree(), "nano", 4096)
    sent = [
        (entity["command_topic"].rpartition("/")[2], entity["payload_press"])
        for entity in entities.values()
        if entity["platform"] == "button"
    ]
    sent.append(("ask", rendered(entities["question"]["command_template"], 'Say "hi"')))
    kinds = [parser.parse(kind, payload.encode()).kind for kind, payload in sent]
    assert sorted(kinds) == ["ask", "ask", "describe", "describe"]


def test_states_are_what_was_said_and_fit(entities):
    template = entities["answer"]["value_template"]
    assert rendered(template, json.dumps({"text": "x" * 300})) == "x" * 255
    assert rendered(template, json.dumps({"error": {"message": "busy"}})) == "busy"
    heard = entities["heard_kitchen"]["value_template"]

    class This:
        state = "before"

    assert rendered(heard, json.dumps({"microphone": "kitchen", "text": "hello"}), this=This) == "hello"
    assert rendered(heard, json.dumps({"microphone": "yard", "text": "hello"}), this=This) == "before"
    assert "seen_door" not in entities  # it is not watched


def test_the_box_is_announced_again_when_home_assistant_starts(tmp_path):
    link = announced(tree(), tmp_path)
    ((topic, payload),) = link.retained
    assert topic == "homeassistant/device/edge-runtime-box/config"
    assert json.loads(payload)["availability"] == [{"topic": "edge-runtime/box/status"}]
    link.heard["homeassistant/status"](b"offline")
    assert len(link.retained) == 1
    link.heard["homeassistant/status"](b"online")
    assert link.retained[1] == link.retained[0]


def test_what_was_announced_is_taken_back(tmp_path):
    announced(tree(), tmp_path)
    renamed = announced(tree(name="other"), tmp_path)
    assert renamed.retained[0] == ("homeassistant/device/edge-runtime-box/config", "")
    off = announced(tree(discovery=False), tmp_path)
    assert off.retained == [("homeassistant/device/edge-runtime-other/config", "")]
    never = announced(tree(discovery=False), tmp_path)
    assert never.retained == []
    assert never.heard == {}
