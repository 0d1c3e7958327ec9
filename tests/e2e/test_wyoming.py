"""The real command with the built-in model, as Home Assistant meets it."""

from __future__ import annotations

import asyncio
import re
import time
import wave
from pathlib import Path

import pytest

import edge_runtime

pytest.importorskip("wyoming")

from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

VOICE = Path(edge_runtime.__file__).parent / "demo_assets" / "voice.wav"


def address(daemon):
    deadline = time.monotonic() + 120
    while not (found := re.findall(r"speech to text for Home Assistant at (\S+):(\d+)", daemon.log)):
        assert time.monotonic() < deadline
        assert daemon.process.poll() is None
        time.sleep(0.05)
    return found[0][0], int(found[0][1])


def test_home_assistant_asks_what_it_is_and_has_speech_written_down(free_port, serve):
    daemon = serve(free_port, EDGE_RUNTIME_WYOMING__LISTEN="127.0.0.1:0", EDGE_RUNTIME_HTTP__LISTEN="off")
    where = address(daemon)

    async def ask():
        async with AsyncTcpClient(*where) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
        async with AsyncTcpClient(*where) as client:
            await client.write_event(Transcribe(language="en").event())
            with wave.open(str(VOICE)) as file:
                events = list(wav_to_chunks(file, 1024, start_event=True, stop_event=True))
            assert (type(events[0]), type(events[-1])) == (AudioStart, AudioStop)
            for sent in events:
                await client.write_event(sent.event())
            pieces: list[str] = []
            while True:
                event = await asyncio.wait_for(client.read_event(), 60)
                if TranscriptChunk.is_type(event.type):
                    pieces.append(TranscriptChunk.from_event(event).text)
                if Transcript.is_type(event.type):
                    return info, pieces, Transcript.from_event(event).text

    info, pieces, text = asyncio.run(ask())
    assert info.asr[0].models[0].name == "nano"
    assert text == "Until what time is the zoo open?"
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert daemon.stop() < 20
    assert "Traceback" not in daemon.log
