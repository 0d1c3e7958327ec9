from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime.daemon.admission import TEXT, VOICE, Admission
from edge_runtime.daemon.local import Busy, LocalRequests
from edge_runtime.daemon.requests import Parser, Request
from edge_runtime.daemon.worker import Worker
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings, Settings
from tests.daemon.office import Office

SETTINGS = Settings(limits=LimitsSettings(images=2))


class Asker:
    """Hears pieces and ends of its requests."""

    def __init__(self, local):
        self.local = local
        self.pieces, self.finals = [], []
        self.changed = threading.Condition()

    def ask(self, text="one two", client="me", *, media=(), rank=TEXT, stream=True, **more):
        content = [*media, {"type": "text", "text": text}]
        request = Request("ask", messages=[{"role": "user", "content": content}], stream=stream, session="s")
        return self.local.submit(
            request, client=client, rank=rank, on_delta=self.pieces.append, on_final=self.final, **more
        )

    def final(self, body):
        with self.changed:
            self.finals.append(body)
            self.changed.notify_all()

    def wait(self, count=1):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.finals) >= count, 20)
        return self.finals


@pytest.fixture
def rooms(model):
    """A room for four with a worker, and one who asks."""
    room = Admission(4, 2)
    worker = Worker(room, model, SETTINGS.limits)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    local = LocalRequests(room, Parser(SETTINGS, "fake", 128))
    yield room, Asker(local)
    model.gate.set()
    room.close()
    thread.join(20)
    assert not thread.is_alive()


def test_the_asker_hears_pieces_and_one_end(rooms):
    handle = rooms[1].ask()
    (final,) = rooms[1].wait()
    assert final["id"] == handle.id
    assert rooms[1].pieces == ["one ", "two "]
    assert final["text"] == "one two "
    assert final["finish_reason"] == "stop"
    handle.cancel()  # too late: nothing more is heard
    assert len(rooms[1].finals) == 1


def test_decoded_media_and_texts_go_to_the_model_as_they_are(rooms, model):
    picture, sound = Image.new("RGB", (8, 8)), np.zeros(16_000, np.float32)
    rooms[1].ask(media=[{"type": "image", "image": picture}, {"type": "audio", "audio": sound}])
    rooms[1].wait()
    content = model.calls[0][0][-1]["content"]
    assert content[0]["image"].size == (8, 8)
    assert content[1]["audio"].shape == (16_000,)
    result: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "1", "content": "21 C"},
        {"role": "user", "content": []},
    ]
    rooms[1].local.submit(Request("ask", messages=result), client="", rank=TEXT, on_delta=None, on_final=rooms[1].final)
    rooms[1].wait(2)
    assert model.calls[1][0][0]["content"] == "21 C"


def test_who_does_not_stream_hears_the_end_alone(rooms):
    rooms[1].ask(stream=False)
    rooms[1].wait()
    assert rooms[1].pieces == []


def test_a_waiting_and_a_running_request_are_cancelled(rooms, model):
    model.gate.clear()
    running, waiting = rooms[1].ask(), rooms[1].ask()
    assert model.begun.wait(20)
    waiting.cancel()
    assert rooms[1].wait()[0]["error"]["code"] == "cancelled"
    running.cancel()
    assert [final["id"] for final in rooms[1].wait(2)] == [waiting.id, running.id]
    assert rooms[1].finals[1]["error"]["code"] == "cancelled"


def test_places_are_limited_in_all_and_for_each(rooms, model):
    model.gate.clear()
    rooms[1].ask(), rooms[1].ask()
    with pytest.raises(Busy, match="of this client") as refused:
        rooms[1].ask()
    assert refused.value.code == "busy"
    assert refused.value.retry_after_s >= 1
    model.begun.wait(20)
    for client in "abc":
        rooms[1].ask(client=client)
    with pytest.raises(Busy, match="too many"):
        rooms[1].ask(client="d")
    model.gate.set()
    rooms[1].wait(5)
    assert rooms[1].ask(client="d").id


def test_too_many_images_are_refused(rooms):
    images = [{"type": "image", "image": b""}] * 3
    with pytest.raises(EdgeRuntimeError, match="images: 3; at most 2"):
        rooms[1].ask(media=images)


def test_an_asker_that_fails_does_not_hurt_the_worker(rooms):
    request = Request("ask", messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}])
    rooms[1].local.submit(request, client="", rank=TEXT, on_delta=None, on_final=lambda _: 1 / 0)
    rooms[1].ask()
    assert rooms[1].wait()[0]["text"] == "one two "


def test_at_the_end_whoever_waits_hears_that(rooms, model):
    room, asker = rooms
    model.gate.clear()
    asker.ask()
    assert model.begun.wait(20)
    asker.ask(rank=VOICE)
    room.close()
    asker.local.close()
    assert asker.wait()[0]["error"]["code"] == "busy"
    room.stop_running()
    assert [final["error"]["message"] for final in asker.wait(2)] == ["the daemon is stopping"] * 2


def test_the_desk_keeps_the_deadlines_of_all_and_cancels_by_id(tmp_path):
    office = Office(tmp_path)
    office.room.on_enter = office.desk.entered
    thread = threading.Thread(target=office.desk.run, daemon=True)
    thread.start()
    asker = Asker(LocalRequests(office.room, Parser(SETTINGS, "fake", 128)))
    time.sleep(0.05)  # the desk sleeps without a deadline
    asker.ask(deadline_s=0.05)
    assert asker.wait()[0]["error"]["code"] == "expired"
    handle = asker.ask()
    office.desk.arrived(office.message({"id": handle.id}, "cancel"))
    assert asker.wait(2)[1]["error"]["code"] == "cancelled"
    assert office.line.answers == []
    office.desk.close()
    thread.join(20)
    office.store.close()
