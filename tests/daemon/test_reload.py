from __future__ import annotations

from edge_runtime.daemon.reload import merge
from edge_runtime.settings import LimitsSettings, LogSettings, ModelSettings, MqttSettings, Settings
from edge_runtime.settings_senses import CameraSettings

NOW = Settings(mqtt=MqttSettings(device="box"))


def test_what_can_change_is_taken_over_and_the_rest_is_named():
    wanted = Settings(
        model=ModelSettings(describe_prompt="Who is there?", threads=2),
        mqtt=MqttSettings(device="box", port=1884),
        limits=LimitsSettings(queue=3, payload_bytes=2048),
        log=LogSettings(level="debug"),
    )
    merged, changed, waiting = merge(NOW, wanted)
    assert sorted(changed) == ["limits.queue", "log.level", "model.describe_prompt"]
    assert sorted(waiting) == ["limits.payload_bytes", "model.threads", "mqtt.port"]
    assert merged.limits == LimitsSettings(queue=3)
    assert merged.mqtt == NOW.mqtt
    assert merged.model.describe_prompt == "Who is there?"
    assert merged.model.threads is None


def test_cameras_change_where_somebody_takes_them_over():
    wanted = Settings(mqtt=NOW.mqtt, cameras=(CameraSettings("door", "/dev/video0"),))
    assert merge(NOW, wanted)[1:] == ([], ["cameras"])
    merged, changed, waiting = merge(NOW, wanted, {"cameras"})
    assert (changed, waiting) == (["cameras"], [])
    assert merged.cameras == wanted.cameras


def test_nothing_changed_is_nothing():
    assert merge(NOW, NOW) == (NOW, [], [])
