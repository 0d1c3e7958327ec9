"""`/v1/listen`: a spoken conversation over a WebSocket. `docs/api.md` has the protocol.

Binary messages are sound; the others JSON objects with a `type`. One turn at a time: speech or a button during an
answer ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocketDisconnect

from edge_runtime.daemon.admission import VOICE
from edge_runtime.daemon.http import checks
from edge_runtime.daemon.http.hearing import Ear, TooFastError
from edge_runtime.daemon.http.jobs import Job
from edge_runtime.daemon.http.messages import Reader
from edge_runtime.daemon.http.problems import SERVER, Problem, bad, of_code
from edge_runtime.daemon.languages import ENGLISH_NAMES, code_of
from edge_runtime.daemon.limits import ID_LENGTH, json_object
from edge_runtime.daemon.requests import Request
from edge_runtime.daemon.worker import FAILED
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.endpointing import EndpointOptions
from edge_runtime.vad import VoiceActivity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.websockets import WebSocket

    from edge_runtime.daemon.http.jobs import Backend
    from edge_runtime.perception.utterance import Utterance

log = logging.getLogger(__name__)

SUBPROTOCOL = "edge-runtime"
# A button may be held for so long: what a model hears at a time.
PUSH_S = EndpointOptions().max_s
# Sound in one message.
SOUND_BYTES = 2**17
# Close codes: RFC 6455 and the IANA registry.
POLICY, TOO_BIG, TRY_LATER = 1008, 1009, 1013


@dataclass(frozen=True, slots=True)
class _Options:
    """What `start` says.

    Attributes:
        system: What the model is told first.
        language: English name of what is spoken.
        transcript: Whether speech is written down first, and the answer is to the words.
        answer: Whether there is to be an answer at all.
        asking: Arguments of `Model.chat`.
    """

    system: str | None = None
    language: str = "English"
    transcript: bool = True
    answer: bool = True
    asking: dict[str, Any] = field(default_factory=dict)


class Talk:
    """One connection."""

    def __init__(self, websocket: WebSocket, backend: Backend) -> None:
        self._websocket, self._backend = websocket, backend
        self._ear = Ear()
        self._options = _Options()
        self._images: list[dict[str, Any]] = []
        self._turn: asyncio.Task[None] | None = None
        self._live: Utterance | None = None  # what the turn is about, while it may still go on
        self._state = ""
        self._client = f"listen {uuid.uuid4().hex}"
        self._named = False
        self._resets = 0
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "start": self._start,
            "stop": self._stop,
            "cancel": self._cancel,
            "reset": self._reset,
            "image": self._image,
            "ask": self._ask,
        }

    async def run(self) -> None:
        """Talks until somebody hangs up."""
        offered = self._websocket.scope["subprotocols"]
        await self._websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        info = self._backend.info
        await self._send("ready", model=info["name"], modalities=list(info["modalities"]), sample_rate=16_000)
        await self._be("idle")
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                try:
                    if (data := message.get("bytes")) is not None:
                        await self._hear(data)
                    else:
                        await self._command(message["text"])
                except Problem as problem:
                    await self._complain(problem)
        except TooFastError:
            await self._websocket.close(POLICY, "sound comes faster than time goes")
        finally:
            self._ear.close("the connection is gone")
            await self._end_turn()
            if not self._named:
                self._forget()

    # --- what the client says ---------------------------------------------------------------------------------------

    async def _command(self, text: str) -> None:
        try:
            body = json_object(text.encode(), self._backend.settings.limits.json_depth)
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error)) from None
        kind = checks.member(*self._commands)("type", body.pop("type", None))
        await self._commands[kind](body)

    async def _start(self, body: dict[str, Any]) -> None:
        if "audio" not in self._backend.info["modalities"]:
            raise of_code("unsupported_media", "this model takes no audio")
        self._set_session(body)
        self._options = _options(body)
        if "image" in body:
            await self._image(body)
        if not checks.truth("hands_free", body.get("hands_free", False)):
            await self._end_turn()  # the button interrupts
            most = min(PUSH_S, self._backend.settings.limits.audio_s)
            self._ear.record(most)
            await self._be("listening", seconds=most)
        else:
            pause = checks.number(0.2, 5)("pause_s", body.get("pause_s", EndpointOptions().pause_s))
            detector = await asyncio.to_thread(VoiceActivity)
            self._ear.listen(detector, replace(EndpointOptions(), pause_s=pause))
            self._ear.answering(on=self._turn is not None)
            await self._be("listening")

    async def _stop(self, _: dict[str, Any]) -> None:
        if self._ear.hands_free:
            self._ear.close("nobody listens any more")
            await self._rest_state()
            return
        self._ear.release()
        if (said := self._ear.said()) is not None:
            await self._take(said)

    async def _cancel(self, _: dict[str, Any]) -> None:
        if not self._ear.hands_free:
            self._ear.close("cancelled")
        await self._end_turn()
        await self._rest_state()

    async def _reset(self, _: dict[str, Any]) -> None:
        """Nothing of what was said is left, for whoever comes next."""
        self._ear.close("reset")
        await self._end_turn()
        self._images = []
        self._forget()
        self._resets += 1
        await self._send("reset")
        await self._be("idle")

    async def _image(self, body: dict[str, Any]) -> None:
        """A picture for the next question; null: none."""
        uri = body.get("image")
        if uri is None:
            self._images = []
            return
        if "image" not in self._backend.info["modalities"]:
            raise of_code("unsupported_media", "this model takes no images")
        self._images = [Reader(self._backend.settings.limits).image("image", checks.text("image", uri))]

    async def _ask(self, body: dict[str, Any]) -> None:
        self._set_session(body)
        text = checks.text("text", body.get("text")).strip()
        if not text:
            raise bad("text", "must not be empty")
        if "system" in body or "max_tokens" in body:
            self._options = _options(body)
        if "image" in body:
            await self._image(body)
        await self._end_turn()
        self._begin_turn(self._answer(self._asked([{"type": "text", "text": text}]), spoken=False))

    # --- what is heard ----------------------------------------------------------------------------------------------

    async def _hear(self, data: bytes) -> None:
        if len(data) > SOUND_BYTES:
            raise of_code("too_large", f"sound: at most {SOUND_BYTES:,} bytes in one message")
        for block in self._ear.blocks(data, asyncio.get_running_loop().time()):
            said = self._ear.feed(block)
            if said is not None:
                await self._take(said)
            elif self._new_speech():
                await self._end_turn()
                await self._be("hearing")
                self._begin_live()
            await asyncio.sleep(0)  # others are heard, too

    def _new_speech(self) -> bool:
        """Whether somebody speaks who is not being listened to yet, and may interrupt what goes on."""
        free = self._turn is None or self._ear.insists
        return self._ear.hearing and self._ear.utterance is not self._live and free

    def _begin_live(self) -> None:
        """Has the model listen while somebody speaks, if it can."""
        said = self._ear.utterance
        if said is not None and self._backend.live and self._options.transcript:
            self._live = said
            self._turn = asyncio.create_task(self._turned(self._speech(said)))

    async def _take(self, said: Utterance) -> None:
        """Something was said to its end; or it was a cough."""
        if said is self._live:
            if said.ended is None or self._turn is None:  # a cough, or there is no place for a question
                await self._end_turn()
                await self._rest_state()
            else:
                await self._be("thinking")
            self._live = None
        elif said.ended is None:
            if self._turn is None:
                await self._rest_state()
        else:
            await self._end_turn()
            self._begin_turn(self._speech(said))

    async def _speech(self, said: Utterance) -> None:
        sound: Any = said if said is self._live else said.sound()  # the daemon takes an utterance as it grows
        if sound is not said and not len(sound):
            raise bad("sound", "nothing was recorded")
        if not self._options.transcript:
            await self._answer(self._asked([{"type": "audio", "audio": sound}]), spoken=True)
            return
        request = Request("transcribe", audio=sound, options={"language": self._options.language}, stream=True)
        async with Job(self._backend, request, self._client, VOICE) as job:
            async for piece in job.pieces():
                await self._send("transcript.delta", text=piece)
        text = job.answer["text"]
        await self._send("transcript", text=text)
        if text and self._options.answer:
            await self._answer(self._asked([{"type": "text", "text": text}]), spoken=True)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _asked(self, content: list[dict[str, Any]]) -> Request:
        messages = [{"role": "user", "content": [*self._images, *content]}]
        self._images = []
        if self._options.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self._options.system}]})
        options = dict(self._options.asking)
        return Request("ask", messages=messages, options=options, session=self._session, stream=True)

    async def _answer(self, request: Request, *, spoken: bool) -> None:
        async with Job(self._backend, request, self._client, VOICE if spoken else None) as job:
            async for piece in job.pieces():
                await self._be("answering")
                await self._send("delta", text=piece)
        kept = ("text", "finish_reason", "usage", "timing")
        await self._send("answer", **{name: job.answer[name] for name in kept if name in job.answer})

    def _begin_turn(self, work: Awaitable[None]) -> None:
        async def turn() -> None:
            await self._be("thinking")
            await work

        self._turn = asyncio.create_task(self._turned(turn()))

    async def _turned(self, work: Awaitable[None]) -> None:
        self._ear.answering(on=True)
        try:
            await work
        except Problem as problem:
            await self._complain(problem)
        except asyncio.CancelledError:
            if self._live is None or self._live.ended:  # else somebody coughed
                await self._send("cancelled")
            raise
        except Exception:
            log.exception("a turn failed")
            await self._complain(Problem(500, FAILED, kind=SERVER, code="internal"))
        self._turn = None
        self._ear.answering(on=False)
        if not self._ear.hearing:
            await self._rest_state()

    async def _end_turn(self) -> None:
        """Whatever is being answered is not wanted any more."""
        turn, self._turn = self._turn, None
        if self._live is not None:
            self._live.cancel()
        if turn is not None:
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            self._ear.answering(on=False)
        self._live = None

    # --- small things -----------------------------------------------------------------------------------------------

    @property
    def _session(self) -> str:
        return f"{self._resets}"

    def _set_session(self, body: dict[str, Any]) -> None:
        """A name of its own lets a conversation go on over another connection."""
        if body.get("session") is not None:
            self._client, self._named = f"listen {checks.text('session', body['session'])[:ID_LENGTH]}", True

    def _forget(self) -> None:
        self._backend.forget(self._client, self._session)

    async def _be(self, state: str, **more: Any) -> None:
        if state != self._state:
            self._state = state
            await self._send("state", state=state, **more)

    async def _rest_state(self) -> None:
        """Says what happens when nothing happens."""
        await self._be("listening" if self._ear.hands_free else "idle")

    async def _complain(self, problem: Problem) -> None:
        await self._send("error", error=problem.body["error"])

    async def _send(self, kind: str, **body: Any) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # `run` hears of the end, too
            await self._websocket.send_text(json.dumps({"type": kind, **body}, ensure_ascii=False))


def _options(body: dict[str, Any]) -> _Options:
    language = "English"
    if body.get("language"):
        try:
            language = ENGLISH_NAMES[code_of(checks.text("language", body["language"]))]
        except EdgeRuntimeError as error:
            raise bad("language", str(error)) from None
    most = body.get("max_tokens")
    return _Options(
        system=None if body.get("system") is None else checks.text("system", body["system"]),
        language=language,
        transcript=checks.truth("transcript", body.get("transcript", True)),
        answer=checks.truth("answer", body.get("answer", True)),
        asking={} if most is None else {"max_tokens": checks.whole(1, 1_000_000)("max_tokens", most)},
    )
