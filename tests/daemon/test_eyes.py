from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw

from edge_runtime.daemon.eyes import Eyes
from edge_runtime.engine.protocol import Piece
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import Settings
from edge_runtime.settings_senses import CameraSettings
from tests.daemon.senses import house


class Yard:
    """A camera that is a file, and a model that tells its colour."""

    def __init__(self, folder, model):
        self.file = folder / "yard.png"
        self.model, self.seen = model, []
        self.error = None
        model._chat = self.look
        self.show("red")

    def show(self, colour, spot=None):
        image = Image.new("RGB", (64, 36), colour)
        if spot:
            ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill=spot)
        new = self.file.with_suffix(".new")
        image.save(new, "PNG")
        new.replace(self.file)

    def look(self, messages, *, cancel, **options):
        (item,) = (item for item in messages[-1]["content"] if item["type"] == "image")
        self.seen.append((item["image"].getpixel((60, 30)), options))
        self.model._wait(cancel)
        if self.error:
            raise self.error
        red = item["image"].getpixel((60, 30))[0]
        return iter([Piece(json.dumps({"red": red > 100}), "stop")])


@pytest.fixture
def yard(tmp_path, model):
    return Yard(tmp_path, model)


def eyes(home):
    made = Eyes(home.parser, home.local, home.news)
    made.open()
    return made


def settings(yard, **more):
    more = {"interval_s": 0.05} | more
    return Settings(cameras=(CameraSettings("yard", str(yard.file), **more),))


def test_only_another_answer_is_told_and_only_a_change_is_asked_about(yard, model):
    schema = {"type": "object"}
    with house(settings(yard, schema=schema, prompt="Red?", max_tokens=9), model) as home:
        watching = eyes(home)
        home.news.wait(1)
        home.news.wait_for(lambda: "camera/yard/answer" in home.news.retained)
        topic, body = home.news.told[0]
        assert topic == "event/frame"
        assert body["answer"] == {"red": True}
        assert yard.seen == [((255, 0, 0), {"schema": schema, "max_tokens": 9})]
        assert home.news.retained["camera/yard/status"] == "online"
        yard.show("red", spot="blue")  # asked about; the answer is the same
        while len(yard.seen) < 2:
            home.room.wait_idle(1)
        looked = watching.snapshot()["yard"]["looked"]
        while watching.snapshot()["yard"]["looked"] < looked + 5:
            home.room.wait_idle(1)
        assert len(yard.seen) == 2
        yard.show("blue")
        assert home.news.wait(2)[1][1]["answer"] == {"red": False}
        watching.close()
    assert len(home.news.told) == 2


def test_a_question_that_failed_or_was_put_off_is_asked_again(yard, model, monkeypatch, caplog):
    monkeypatch.setattr("edge_runtime.daemon.eyes.AGAIN_S", 0.05)
    yard.error = EdgeRuntimeError("no such thing")
    with house(settings(yard), model) as home:
        watching = eyes(home)
        while len(yard.seen) < 3:
            home.room.wait_idle(1)
        yard.error = None
        model.gate.clear()
        model.begun.clear()
        assert model.begun.wait(20)
        watching.make_room()
        assert home.room.wait_idle(20)
        model.gate.set()
        assert home.news.wait(1)[0][1]["camera"] == "yard"
        watching.close()
    assert [record.message for record in caplog.records if "no such thing" in record.message] == [
        "camera yard: watching gets no answer: no such thing"
    ]


def test_a_camera_that_is_not_watched_waits_to_be_asked(yard, model):
    with house(settings(yard, interval_s=None), model) as home:
        looking = eyes(home)
        assert looking.picture("yard").size == (64, 36)
        yard.file.unlink()
        with pytest.raises(EdgeRuntimeError, match="camera yard"):
            looking.picture("yard")
        assert home.news.retained["camera/yard/status"] == "offline"
        looking.pace(4.0)
        looking.close()
    assert yard.seen == []
