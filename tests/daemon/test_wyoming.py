"""Wyoming's own client against the service; only the model is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.http.jobs import Backend
from edge_runtime.daemon.local import LocalRequests
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.worker import Worker
from edge_runtime.daemon.wyoming import Wyoming
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings, Settings, WyomingSettings

pytest.importorskip("wyoming")

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

SETTINGS = Settings(limits=LimitsSettings(audio_s=2), wyoming=WyomingSettings(listen="127.0.0.1:0"))


class Service:
    def __init__(self, model, settings=SETTINGS, *, live=False):
        self.admission = Admission(4, 4)
        parser = Parser(settings, "fake", 128)
        local = LocalRequests(self.admission, parser)
        worker = Worker(self.admission, model, settings.limits)
        self.wyoming = Wyoming(Backend(parser, model.info, local, worker.forget, 1, live), "1.0", "box")
        threading.Thread(target=worker.run, daemon=True).start()
        self.wyoming.open()

    def close(self):
        self.admission.close()
        self.admission.stop_running()
        self.wyoming.stop()
        self.wyoming.join(20)
        assert not self.wyoming._thread.is_alive()

    def talk(self, *events, until):
        """Sends events; what comes back until one of type `until`."""

        async def talk():
            async with AsyncTcpClient(*self.wyoming.address) as client:
                for event in events:
                    await client.write_event(event.event())
                answers: list[Any] = []
                while not answers or not until.is_type(answers[-1].type):
                    event = await asyncio.wait_for(client.read_event(), 20)
                    assert event is not None
                    answers.append(event)
                return answers

        return asyncio.run(talk())


@pytest.fixture(params=[False, True], ids=["then", "live"])
def service(model, request):
    """Once with a model that listens when all is said, once with one that listens meanwhile."""
    service = Service(model, live=request.param)
    yield service
    model.gate.set()
    service.close()


def sound(seconds=1.0, rate=16_000, width=2, channels=1):
    samples = (np.sin(np.arange(int(seconds * rate)) / 5) * 0.1 * 2 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        samples += 128
    data = np.repeat(samples, channels).astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes()
    form = {"rate": rate, "width": width, "channels": channels}
    chunks = [AudioChunk(audio=data[at : at + 4096], **form) for at in range(0, len(data), 4096)]
    return [AudioStart(**form), *chunks, AudioStop()]


def test_it_says_what_it_is(service):
    info = Info.from_event(service.talk(Describe(), until=Info)[0])
    program = info.asr[0]
    assert (program.name, program.version, program.supports_transcript_streaming) == ("edge-runtime", "1.0", True)
    assert program.models[0].name == "fake"
    assert {"en", "de"} <= set(program.models[0].languages)
    assert Pong.from_event(service.talk(Ping("x"), until=Pong)[0]).text == "x"


def test_it_writes_down_what_is_said_while_it_hears_it(service, model):
    answers = service.talk(Transcribe(language="de"), *sound(), until=TranscriptStop)
    assert TranscriptStart.is_type(answers[0].type)
    assert "".join(TranscriptChunk.from_event(event).text for event in answers[1:-2]) == "hello"
    assert Transcript.from_event(answers[-2]).text == "hello"
    heard, options = model.calls[0]
    assert options == {"language": "German"}
    assert len(heard) == 16_000


@pytest.mark.parametrize(("rate", "width", "channels"), [(48_000, 2, 2), (22_050, 4, 1), (8_000, 1, 1)])
def test_other_forms_of_sound_become_ours(service, model, rate, width, channels):
    service.talk(*sound(1.0, rate, width, channels), until=TranscriptStop)
    heard, _ = model.calls[0]
    assert abs(len(heard) - 16_000) < 50
    assert 0.05 < np.abs(heard).max() < 0.15
    assert abs(heard.mean()) < 0.01


def test_what_is_too_long_to_be_heard_at_a_time_is_written_down_at_its_end(model, monkeypatch):
    monkeypatch.setattr("edge_runtime.daemon.wyoming.LIVE_S", 0.5)
    service = Service(model, live=True)
    answers = service.talk(*sound(1.0), until=TranscriptStop)
    assert Transcript.from_event(answers[-2]).text == "hello"
    assert len(model.calls[-1][0]) == 16_000
    service.close()


def test_silence_is_no_question(service, model):
    answers = service.talk(AudioStart(16_000, 2, 1), AudioStop(), until=Transcript)
    assert Transcript.from_event(answers[-1]).text == ""
    assert not model.calls


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (sound(3.0), "too_large"),
        ([AudioStart(16_000, 3, 1), AudioChunk(16_000, 3, 1, b"xyz")], "unsupported_media"),
        ([AudioStart(1, 2, 1), AudioChunk(1, 2, 1, b"xy")], "unsupported_media"),
        ([Transcribe(language="klingon")], "bad_request"),
    ],
)
def test_what_is_wrong_is_told(service, events, code):
    assert Error.from_event(service.talk(*events, until=Error)[-1]).code == code


def test_errors_of_the_model_are_told(service, model):
    model.transcribe = lambda *_, **__: 1 / 0
    assert Error.from_event(service.talk(*sound(), until=Error)[-1]).code == "internal"


def test_whoever_hangs_up_is_forgotten(service, model):
    model.gate.clear()

    async def talk():
        async with AsyncTcpClient(*service.wyoming.address) as client:
            for event in sound():
                await client.write_event(event.event())
            await asyncio.to_thread(model.begun.wait, 20)

    asyncio.run(talk())
    assert service.admission.wait_idle(20)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"GET / HTTP/1.1\n",
        b"[]\n",
        json.dumps({"type": "audio-chunk", "payload_length": 10**12}).encode() + b"\n",
        json.dumps({"type": "describe", "data_length": -1}).encode() + b"\n",
        json.dumps({"type": "describe", "data": "x", "data_length": "y"}).encode() + b"\n",
        b"x" * 100_000,
    ],
)
def test_what_is_no_event_is_hung_up_on(service, line):
    gone = contextlib.suppress(ConnectionError)
    with gone, socket.create_connection(service.wyoming.address, timeout=20) as client:
        client.sendall(line)
        assert client.recv(1) == b""
    assert service.talk(Describe(), until=Info)


def test_only_so_many_at_a_time(model):
    service = Service(model, replace(SETTINGS, wyoming=WyomingSettings(listen="127.0.0.1:0", connections=1)))
    with socket.create_connection(service.wyoming.address, timeout=20) as first:
        first.sendall(b'{"type": "ping"}\n')
        assert b"pong" in first.recv(1000)
        gone = contextlib.suppress(ConnectionError)
        with gone, socket.create_connection(service.wyoming.address, timeout=20) as second:
            assert second.recv(1) == b""
    service.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"listen": "10300"}, "wyoming.listen must be host:port"),
        ({"listen": "127.0.0.1:0", "language": "klingon"}, "wyoming.language"),
    ],
)
def test_settings_that_cannot_be_are_one_line(model, changes, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        Service(model, replace(SETTINGS, wyoming=WyomingSettings(**changes)))


def test_zeroconf_tells_where_it_is(free_port):
    pytest.importorskip("zeroconf")
    from zeroconf.asyncio import AsyncZeroconf

    from edge_runtime.daemon.announcing import Announcement

    domain = "_wyoming._tcp.local."

    async def find():
        async with Announcement("box", domain, free_port, ["127.0.0.1"]) as announcement:
            await announcement.renew()
            await announcement.renew()
            async with AsyncZeroconf(interfaces=["127.0.0.1"]) as other:
                return await other.async_get_service_info(domain, f"box.{domain}", 5000)

    found = asyncio.run(find())
    assert found is not None
    assert (found.port, found.parsed_addresses()) == (free_port, ["127.0.0.1"])
