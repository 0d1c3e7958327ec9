"""Speech to text for Home Assistant, by the Wyoming protocol (https://github.com/OHF-Voice/wyoming).

A client sends `transcribe`, `audio-start`, chunks and `audio-stop`; it gets `transcript-start`, chunks while the words
are written, `transcript` with all of them, and `transcript-stop`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.daemon.admission import VOICE
from edge_runtime.daemon.http.guard import is_loopback
from edge_runtime.daemon.http.jobs import Job
from edge_runtime.daemon.http.problems import Problem, of_code
from edge_runtime.daemon.http.server import bind, parse_address
from edge_runtime.daemon.languages import ENGLISH_NAMES, code_of
from edge_runtime.daemon.loop import LoopThread
from edge_runtime.daemon.requests import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.media import SAMPLE_RATE
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.daemon.http.jobs import Backend

log = logging.getLogger(__name__)

KEY = "wyoming.listen"
DOMAIN = "_wyoming._tcp.local."
# Home Assistant sends chunks of some kilobytes.
HEAD_BYTES, DATA_BYTES, CHUNK_BYTES = 2**14, 2**16, 2**20
# A connection on which nothing comes for so long is closed.
IDLE_S = 300
# What a model hears at a time; longer recordings are written down in parts when they are complete.
LIVE_S = 29.0
ANNOUNCE_AGAIN_S = 60
FAREWELL_S = 0.5
_WIDTHS: dict[Any, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


class Wyoming(LoopThread):
    """The service.

    Attributes:
        address: Host and port where it listens.
    """

    def __init__(self, backend: Backend, version: str, device: str) -> None:
        """Binds the address.

        Args:
            backend: What transcribes.
            version: Of the program.
            device: The box's name.

        Raises:
            EdgeRuntimeError: The address cannot be had, the package is missing, or the model takes no audio.
        """
        super().__init__("wyoming")
        try:
            import wyoming  # noqa: F401, PLC0415 - an extra
        except ImportError:
            raise EdgeRuntimeError(f"{KEY} needs the extra: pip install 'edge-runtime[wyoming]'") from None
        settings = backend.settings.wyoming
        if "audio" not in backend.info["modalities"]:
            raise EdgeRuntimeError(f"{KEY}: the model {backend.info['name']} takes no audio")
        try:
            self._language = code_of(settings.language)
        except EdgeRuntimeError as error:
            raise EdgeRuntimeError(f"wyoming.language: {error}") from None
        self._backend, self._version, self._device = backend, version, device
        self._socket = bind(parse_address(settings.listen or "", KEY), KEY)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._talks: set[asyncio.Task[Any]] = set()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._talk, sock=self._socket, limit=HEAD_BYTES)
        log.info("speech to text for Home Assistant at %s:%d", *self.address)
        announcing = asyncio.create_task(self._announce())
        self._up.set()
        await self._stop.wait()
        server.close()
        announcing.cancel()
        for talk in self._talks:
            talk.cancel()
        await asyncio.wait([announcing, *self._talks], timeout=FAREWELL_S)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._talks) >= self._backend.settings.wyoming.connections:
            writer.transport.abort()
            return
        self._talks.add(task)
        try:
            await _Talk(self, reader, writer).run()
        except (OSError, EOFError, TimeoutError):
            pass  # whoever it was is gone
        except _NotWyomingError as error:
            log.warning("a Wyoming client is hung up on: %s", error)
        except Exception:
            log.exception("a Wyoming client could not be served")
        finally:
            self._talks.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _announce(self) -> None:
        """Says by zeroconf that we are there, as long as we are; again when the box's addresses change."""
        host, port = self.address
        if not self._backend.settings.wyoming.announce or is_loopback(host):
            return
        from edge_runtime.daemon.announcing import Announcement  # noqa: PLC0415 - an extra

        async with Announcement(self._device, DOMAIN, port) as announcement:
            while True:
                try:
                    await announcement.renew()
                except OSError as error:
                    log.debug("zeroconf: %s", error)
                await asyncio.sleep(ANNOUNCE_AGAIN_S)

    def info(self) -> Any:
        """What is offered: a `wyoming.info.Info`."""
        from wyoming.info import AsrModel, AsrProgram, Attribution, Info  # noqa: PLC0415

        own = Attribution("edge-runtime", "https://pypi.org/project/edge-runtime/")
        gemma = Attribution("Google", "https://ai.google.dev/gemma")
        name = self._backend.info["name"]
        model = AsrModel(name, gemma, installed=True, description=name, version=None, languages=list(ENGLISH_NAMES))
        program = AsrProgram(
            "edge-runtime",
            own,
            installed=True,
            description="Gemma 4 on this box",
            version=self._version,
            models=[model],
            supports_transcript_streaming=True,
        )
        return Info(asr=[program])


_Event = tuple[str, dict[str, Any], bytes]


class _NotWyomingError(Exception):
    """What came is no event."""


class _Talk:
    """One connection."""

    def __init__(self, service: Wyoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        self._backend = service._backend  # noqa: SLF001 - part of it
        self._most = int(self._backend.settings.limits.audio_s * SAMPLE_RATE)
        self._language = service._language  # noqa: SLF001
        self._sound: list[NDArray[np.float32]] | None = None
        self._rate = SAMPLE_RATE
        self._live: tuple[Utterance, Job] | None = None
        self._ahead: asyncio.Task[_Event | None] | None = None

    async def run(self) -> None:
        """Talks until the other side hangs up."""
        try:
            while (event := await asyncio.wait_for(self._reading(), IDLE_S)) is not None:
                self._ahead = None
                try:
                    await self._heard(*event)
                except Problem as problem:
                    self._sound = None
                    self._drop_live()
                    await self._say("error", {"text": str(problem), "code": problem.body["error"]["code"]})
        finally:
            self._drop_live()
            if self._ahead is not None:
                self._ahead.cancel()

    def _reading(self) -> asyncio.Task[_Event | None]:
        """The next event, which is read while we work: its absence tells that the other side has hung up."""
        if self._ahead is None:
            self._ahead = asyncio.create_task(_read(self._reader))
        return self._ahead

    async def _heard(self, kind: str, data: dict[str, Any], payload: bytes) -> None:
        if kind == "describe":
            await self._say("info", self._service.info().event().data)
        elif kind == "ping":
            await self._say("pong", {"text": data.get("text")})
        elif kind == "transcribe":
            self._choose(data.get("language"))
        elif kind == "audio-start":
            self._drop_live()
            self._sound = []
        elif kind == "audio-chunk" and self._sound is not None:
            self._keep(data, payload)
        elif kind == "audio-stop" and self._sound is not None:
            sound, self._sound = self._sound, None
            await self._transcribe(sound)

    def _choose(self, language: object) -> None:
        try:
            self._language = code_of(language) if isinstance(language, str) and language else self._language
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error)) from None

    def _keep(self, data: dict[str, Any], payload: bytes) -> None:
        rate, width, channels = (data.get(name, 0) for name in ("rate", "width", "channels"))
        if not (isinstance(rate, int) and 4000 <= rate <= 192_000 and channels in {1, 2} and width in _WIDTHS):
            raise of_code("unsupported_media", "sound must be PCM of 1, 2 or 4 bytes, mono or stereo")
        kind, size = _WIDTHS[width], len(payload) // (width * channels) * channels
        samples = np.frombuffer(payload, kind, size).astype(np.float32)
        full = float(2 ** (8 * width - 1))
        samples = (samples - (full if width == 1 else 0.0)) / full
        sound = self._sound if self._sound is not None else []
        sound.append(samples.reshape(-1, channels).mean(axis=1, dtype=np.float32))
        self._rate = rate
        if sum(map(len, sound)) / rate * SAMPLE_RATE > self._most:
            raise of_code("too_large", f"longer than {self._backend.settings.limits.audio_s:.0f} s")
        if self._backend.live and rate == SAMPLE_RATE:
            self._hear(sound)

    def _hear(self, sound: list[NDArray[np.float32]]) -> None:
        """Has the model listen while somebody speaks, if that does not take longer than it hears at a time."""
        if self._live is None and len(sound) == 1:
            utterance = Utterance("wyoming", "push")
            self._live = utterance, self._ask(utterance)
        if self._live is not None:
            self._live[0].push(sound[-1])
            if self._live[0].seconds > LIVE_S:
                self._drop_live()

    def _drop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live[0].cancel()
            live[1].cancel()

    def _ask(self, sound: Utterance | NDArray[np.float32]) -> Job:
        options = {"language": ENGLISH_NAMES[self._language]}
        host = (self._writer.get_extra_info("peername") or ("",))[0]
        request = Request("transcribe", audio=sound, options=options, stream=True)
        return Job(self._backend, request, f"wyoming {host}", VOICE)

    async def _transcribe(self, sound: list[NDArray[np.float32]]) -> None:
        live, self._live = self._live, None
        samples = np.concatenate([np.zeros(0, np.float32), *sound])
        if self._rate != SAMPLE_RATE and len(samples):
            import soxr  # noqa: PLC0415

            samples = soxr.resample(samples, self._rate, SAMPLE_RATE)
        await self._say("transcript-start", {"language": self._language})
        text = ""
        if live is not None:
            live[0].end("stopped")
        if len(samples):
            async with live[1] if live is not None else self._ask(samples) as job:
                await self._while_there(job)
            text = job.answer["text"]
        await self._say("transcript", {"text": text, "language": self._language})
        await self._say("transcript-stop", {})

    async def _while_there(self, job: Job) -> None:
        """Passes on pieces; gives up when the other side hangs up."""

        async def pieces() -> None:
            async for piece in job.pieces():
                await self._say("transcript-chunk", {"text": piece})

        talking, ahead = asyncio.create_task(pieces()), self._reading()
        try:
            await asyncio.wait({talking, ahead}, return_when=asyncio.FIRST_COMPLETED)
            if not talking.done() and ahead.result() is None:
                raise ConnectionResetError
            await talking
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)

    async def _say(self, kind: str, data: dict[str, Any]) -> None:
        from wyoming.event import Event, async_write_event  # noqa: PLC0415

        async with asyncio.timeout(IDLE_S):
            await async_write_event(Event(kind, data), self._writer)


async def _read(reader: asyncio.StreamReader) -> _Event | None:
    """An event's type, data and payload, no larger than is sensible; the package's own reader takes whatever comes.

    Raises:
        _NotWyomingError: It is none.
    """
    try:
        line = await reader.readline()
        if not line:
            return None
        head = json.loads(line)
        data, payload = head.get("data") or {}, b""
        if count := _length(head, "data_length", DATA_BYTES):
            data |= json.loads(await reader.readexactly(count))
        if count := _length(head, "payload_length", CHUNK_BYTES):
            payload = await reader.readexactly(count)
        return str(head["type"]), dict(data), payload
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _NotWyomingError(f"no event: {error}") from None


def _length(head: dict[str, Any], name: str, most: int) -> int:
    count = head.get(name) or 0
    if not isinstance(count, int) or not 0 <= count <= most:
        raise ValueError(f"{name} {count!r}")
    return count
