from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edge_runtime import settings, settings_senses
from edge_runtime.errors import EdgeRuntimeError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


def test_defaults_need_no_file():
    tree = settings.load(environment={})
    assert (tree.mqtt.host, tree.mqtt.port, tree.model.path) == ("localhost", 1883, None)
    assert tree.mqtt.device


def test_file_sets_every_kind_of_value(tmp_path):
    file = written(
        tmp_path,
        '[model]\npath = "/srv/bundle"\nthreads = 2\n[mqtt]\nhost = "broker"\nprefix = "site/edge"\n'
        "[limits]\naudio_s = 30\n",
    )
    tree = settings.load(file, environment={})
    assert tree.model.path == Path("/srv/bundle")
    assert tree.model.threads == 2
    assert tree.mqtt.host == "broker"
    assert tree.mqtt.prefix == "site/edge"
    assert tree.limits.audio_s == 30.0
    assert isinstance(tree.limits.audio_s, float)


def test_environment_wins_over_the_file(tmp_path):
    file = written(tmp_path, "[mqtt]\nport = 1000\n")
    environment = {"EDGE_RUNTIME_MQTT__PORT": "2000", "EDGE_RUNTIME_LIMITS__AUDIO_S": "1.5", "EDGE_RUNTIME_CACHE": "/x"}
    tree = settings.load(file, environment)
    assert tree.mqtt.port == 2000
    assert tree.limits.audio_s == 1.5


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[mqtt]\nhost = "a"\nprot = 1\n', 3, "unknown key mqtt.prot"),
        ("# a comment\n\n[mqqt]\nport = 1\n", 3, "unknown section [mqqt]"),
        ("port = 1\n", 1, "unknown section [port]"),
        ('[model]\ncontext = 512\n\n[mqtt]\nport = "x"\n', 5, "mqtt.port must be a whole number"),
        ("[mqtt]\nport = 70000\n", 2, "mqtt.port must be from 1 to 65535"),
        ("[limits]\nqueue = true\n", 2, "limits.queue must be a whole number"),
        ('[mqtt]\ndevice = "a/b"\n', 2, "mqtt.device must be one level"),
        ('[mqtt]\nprefix = "a/#"\n', 2, "mqtt.prefix must be levels"),
        ("[model]\nthreads = 1\nmqtt.port = 1\n", 3, "unknown key model.mqtt"),
        ("mqtt.prot = 1\n", 1, "unknown key mqtt.prot"),
        ("\nmqtt = { prot = 1 }\n", 2, "unknown key mqtt.prot"),
        ("[mqtt.tls]\nca = 1\n", 1, "unknown key mqtt.tls"),
        ('[model]\npath = ""\n', 2, "model.path must be a path"),
        ('[[cameras]]\nname = "a"\nsource = "x"\n[[cameras]]\nname = "b"\nsauce = 1\n', 6, "unknown key cameras.sauce"),
        ('[[cameras]]\nname = "a"\n', 1, "cameras.source is missing"),
        ('[[microphones]]\nname = "a"\n\n[[microphones]]\nname = "a"\n', 4, "two of microphones have the name a"),
        ('[[microphones]]\nname = "a"\nmode = "always"\n', 3, "must be one of push-to-talk, voice, wake-word, not"),
        ('[microphones]\nname = "a"\n', 1, "must be written [[microphones]]"),
        ("[[mqtt]]\nport = 1\n", 1, "must be written [mqtt]"),
        ('[[cameras]]\nname = "a"\nsource = "x"\nschema = 1\n', 4, "cameras.schema must be a table"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, says):
    file = written(tmp_path, text)
    with pytest.raises(EdgeRuntimeError) as caught:
        settings.load(file, environment={})
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert says in str(caught.value)


def test_broken_toml_names_file_and_line(tmp_path):
    file = written(tmp_path, "[mqtt]\nhost = broker\n")
    with pytest.raises(EdgeRuntimeError, match=r"config.toml: not TOML: .*line 2"):
        settings.load(file, environment={})


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(EdgeRuntimeError, match="no such settings file"):
        settings.load(tmp_path / "nowhere.toml", environment={})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EDGE_RUNTIME_MQTT__PROT", "1", "unknown key mqtt.prot"),
        ("EDGE_RUNTIME_PRINTER__LISTEN", "1", "unknown section printer"),
        ("EDGE_RUNTIME_MQTT__PORT", "many", "mqtt.port must be a whole number"),
        ("EDGE_RUNTIME_LIMITS__AUDIO_S", "nan", "limits.audio_s must be from"),
        ("EDGE_RUNTIME_CAMERAS__NAME", "door", "cameras are numbered from 0"),
        ("EDGE_RUNTIME_CAMERAS__0__NAME", "door", "cameras.source is missing"),
        ("EDGE_RUNTIME_CAMERAS__0__SCHEMA", "{", "cameras.schema must be a JSON object"),
    ],
)
def test_a_bad_variable_is_named(name, value, says):
    with pytest.raises(EdgeRuntimeError, match=says) as caught:
        settings.load(environment={name: value})
    assert name in str(caught.value)


def test_truth_is_true_or_false(tmp_path):
    assert settings.load(written(tmp_path, "[model]\nvision_tools = true\n"), environment={}).model.vision_tools is True
    for text, truth in (("true", True), ("0", False), ("FALSE", False)):
        assert settings.load(environment={"EDGE_RUNTIME_MODEL__VISION_TOOLS": text}).model.vision_tools is truth
    with pytest.raises(EdgeRuntimeError, match=r"model\.vision_tools must be true or false"):
        settings.load(written(tmp_path, "[model]\nvision_tools = 1\n"), environment={})


def test_what_must_outlive_a_restart_has_a_folder(tmp_path, monkeypatch):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    nothing = settings.StorageSettings()
    assert settings.state_folder(nothing) == Path("/home/somebody/.local/state/edge-runtime")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert settings.state_folder(nothing) == Path("/state/edge-runtime")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge-runtime:/var/lib/other")
    assert settings.state_folder(nothing) == Path("/var/lib/edge-runtime")
    assert settings.state_folder(settings.StorageSettings(tmp_path)) == tmp_path


def test_microphones_and_cameras_are_lists(tmp_path):
    file = written(
        tmp_path,
        '[[microphones]]\nname = "kitchen"\nmode = "wake-word"\nwake_words = ["okay_nabu"]\n'
        '[[cameras]]\nname = "door"\nsource = "rtsp://a"\n[cameras.schema]\ntype = "object"\n'
        '[[cameras]]\nname = "yard"\nsource = "/dev/video0"\ninterval_s = 5\n',
    )
    environment = {
        "EDGE_RUNTIME_MICROPHONES__0__DEVICE": "USB",
        "EDGE_RUNTIME_CAMERAS__1__SOURCE": "/dev/video2",
        "EDGE_RUNTIME_CAMERAS__2__NAME": "hall",
        "EDGE_RUNTIME_CAMERAS__2__SOURCE": "hall.jpg",
        "EDGE_RUNTIME_CAMERAS__2__SCHEMA": '{"type": "object"}',
    }
    tree = settings.load(file, environment)
    (kitchen,) = tree.microphones
    assert (kitchen.device, kitchen.mode, kitchen.wake_words) == ("USB", "wake-word", ("okay_nabu",))
    assert [(camera.name, camera.source, camera.interval_s) for camera in tree.cameras] == [
        ("door", "rtsp://a", None),
        ("yard", "/dev/video2", 5.0),
        ("hall", "hall.jpg", None),
    ]
    assert tree.cameras[0].schema == tree.cameras[2].schema == {"type": "object"}
    assert settings.load(environment={}).microphones == ()


def test_a_wake_word_microphone_needs_words():
    environment = {"EDGE_RUNTIME_MICROPHONES__0__NAME": "a", "EDGE_RUNTIME_MICROPHONES__0__MODE": "wake-word"}
    with pytest.raises(EdgeRuntimeError, match="microphone a: the mode wake-word needs wake_words"):
        settings.load(environment=environment)


def test_the_settings_that_the_page_teaches_are_settings(tmp_path):
    page = (Path(settings.__file__).parents[1] / "docs" / "voice-and-cameras.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    trees = [settings.load(written(tmp_path, block), environment={}) for block in blocks]
    assert [camera.name for tree in trees for camera in tree.cameras] == ["door", "yard"]
    assert [microphone.name for tree in trees for microphone in tree.microphones] == ["kitchen"]
    keys = set(re.findall(r"`(\w+)`", "".join(line for line in page.splitlines() if line.startswith("| `"))))
    known = {
        field.name
        for kind in (settings_senses.MicrophoneSettings, settings_senses.CameraSettings)
        for field in dataclasses.fields(kind)
    }
    assert known - keys <= {"name", "source"}
