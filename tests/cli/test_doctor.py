from __future__ import annotations

import json
import socket
import stat

import pytest

from edge_runtime import builtin
from edge_runtime.cli import doctor
from edge_runtime.cli.main import main
from edge_runtime.daemon import checkup
from edge_runtime.daemon.checkup import examine, memory_limit, memory_needed
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import HttpSettings, ModelSettings, MqttSettings, Settings, StorageSettings
from edge_runtime.settings_senses import CameraSettings, MicrophoneSettings
from tests.e2e.crowd import mosquitto_with


@pytest.fixture(autouse=True)
def _model():
    try:
        builtin.checkpoint_path()
    except EdgeRuntimeError as error:
        pytest.skip(str(error))


def settings_of(tmp_path, port, **more):
    parts = {
        "mqtt": MqttSettings(host="127.0.0.1", port=port, device="box"),
        "storage": StorageSettings(state_dir=tmp_path / "state"),
        "http": HttpSettings(listen="off"),
        **more,
    }
    return Settings(**parts)


def found(settings, topic):
    return [finding for finding in examine(settings) if finding.topic == topic]


def test_a_sound_box_has_nothing_to_mend(tmp_path, mosquitto):
    findings = list(examine(settings_of(tmp_path, mosquitto.port)))
    assert [finding for finding in findings if finding.state == "bad"] == []
    lines = {finding.topic: finding.line for finding in findings}
    assert "CPU" in lines["providers"]
    assert lines["broker"] == f"127.0.0.1:{mosquitto.port} takes us, with MQTT v5"
    assert lines["http"] == "off"


def test_a_broker_that_is_away_is_named(tmp_path, free_port):
    (finding,) = found(settings_of(tmp_path, free_port), "broker")
    assert finding.state == "bad"
    assert "cannot be reached (Connection refused): is mosquitto installed" in finding.line


def test_a_wrong_password_is_the_brokers_word(tmp_path, free_port):
    (tmp_path / "users").touch()
    with mosquitto_with(tmp_path, free_port, "allow_anonymous false", f"password_file {tmp_path / 'users'}"):
        (finding,) = found(settings_of(tmp_path, free_port), "broker")
    assert (finding.state, "not authorized" in finding.line) == ("bad", True)
    missing = MqttSettings(host="127.0.0.1", port=free_port, username="box", password_file=tmp_path / "none")
    (finding,) = found(settings_of(tmp_path, free_port, mqtt=missing), "broker")
    assert "No such file" in finding.line


def test_a_model_that_is_not_there_or_too_large(tmp_path, free_port, monkeypatch):
    (finding,) = found(settings_of(tmp_path, free_port, model=ModelSettings(path=tmp_path / "none")), "model")
    assert "is no bundle: make one with edge-runtime export" in finding.line
    monkeypatch.setattr(checkup, "memory_needed", lambda _: 10**15)
    (finding,) = found(settings_of(tmp_path, free_port), "memory")
    assert (finding.state, "a smaller model" in finding.line) == ("bad", True)


def test_a_state_folder_that_cannot_be_made(tmp_path, free_port):
    (tmp_path / "file").touch()
    storage = StorageSettings(state_dir=tmp_path / "file" / "state")
    (finding,) = found(settings_of(tmp_path, free_port, storage=storage), "state")
    assert "cannot be written (Not a directory): set storage.state_dir" in finding.line


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":"ok"}', "ok", "is well"),
        (b'HTTP/1.1 503 No\r\n\r\n{"status":"hung: worker"}', "bad", "says: hung: worker"),
        (b"SSH-2.0-OpenSSH\r\n", "bad", "another program's"),
        (None, "note", "does not run"),
    ],
)
def test_whoever_has_the_http_port(tmp_path, free_port, answer, state, says):
    import threading

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    if answer is None:
        listening.close()
    else:

        def serve():
            line, _ = listening.accept()
            line.recv(1000)
            line.sendall(answer)
            line.close()

        threading.Thread(target=serve, daemon=True).start()
    settings = settings_of(tmp_path, free_port, http=HttpSettings(listen=f"127.0.0.1:{port}"))
    (finding,) = found(settings, "http")
    assert (finding.state, says in finding.line) == (state, True), finding
    listening.close()


def test_an_http_address_that_is_none(tmp_path, free_port):
    (finding,) = found(settings_of(tmp_path, free_port, http=HttpSettings(listen="8080")), "http")
    assert (finding.state, finding.line[:11]) == ("bad", "http.listen")


def test_a_camera_and_a_microphone_that_are_not_there(tmp_path, free_port):
    settings = settings_of(
        tmp_path,
        free_port,
        cameras=(CameraSettings("door", str(tmp_path / "none.jpg")),),
        microphones=(MicrophoneSettings("kitchen", device="no such device", speak=False),),
    )
    (camera,) = found(settings, "camera door")
    (microphone,) = found(settings, "microphone kitchen")
    assert (camera.state, microphone.state) == ("bad", "bad")
    assert "none.jpg" in camera.line
    assert microphone.line


def test_a_camera_that_gives_pictures(tmp_path, free_port, make_png_file):
    settings = settings_of(tmp_path, free_port, cameras=(CameraSettings("door", str(make_png_file)),))
    (camera,) = found(settings, "camera door")
    assert (camera.state, camera.line) == ("ok", "gives pictures of 64 x 48")


@pytest.fixture
def make_png_file(tmp_path):
    from PIL import Image

    file = tmp_path / "door.png"
    Image.new("RGB", (64, 48), "red").save(file)
    return file


def test_the_command_prints_lines_or_one_object_and_says_by_its_status(tmp_path, free_port, capsys, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(f'[mqtt]\nhost = "127.0.0.1"\nport = {free_port}\n[http]\nlisten = "off"\n')
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    assert main(["doctor", "--config", str(config)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line[:4] in {"ok  ", "note", "MEND"} for line in lines)
    assert main(["doctor", "--config", str(config), "--json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert body["ok"] is False
    assert [entry["topic"] for entry in body["findings"] if entry["state"] == "bad"] == ["broker"]


def test_bad_settings_are_one_line(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text("[mqtt]\nprot = 1\n")
    assert main(["doctor", "--config", str(config)]) == 2
    assert ":2: unknown key mqtt.prot" in capsys.readouterr().err


def test_the_services_limit_is_written(tmp_path, monkeypatch, capsys):
    unit = tmp_path / "edge-runtime.service"
    unit.write_text("[Service]\n")
    monkeypatch.setattr(doctor, "UNIT", unit)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = tmp_path / "config.toml"
    config.write_text('[mqtt]\nhost = "127.0.0.1"\n')
    assert main(["doctor", "--config", str(config), "--write-limits", "--quiet"]) == 0
    assert "systemctl daemon-reload" in capsys.readouterr().out
    file = tmp_path / "edge-runtime.service.d/memory.conf"
    settings = Settings(mqtt=MqttSettings(host="127.0.0.1"))
    assert f"[Service]\nMemoryMax={memory_limit(settings)}\n" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert memory_limit(settings) > memory_needed(settings)
