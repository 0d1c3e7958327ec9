"""Another edge-runtime at the same broker as an engine: its requests and answers go over MQTT."""

from __future__ import annotations

import base64
import json
import queue
import secrets
import threading
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes

from edge_runtime import media
from edge_runtime.daemon.client import ONLINE, QOS, V5, properties, set_password
from edge_runtime.daemon.topics import Topics
from edge_runtime.engine.llama.chat import picture, wav
from edge_runtime.engine.protocol import Info, Piece
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import check_chat

if TYPE_CHECKING:
    from collections.abc import Generator

    from paho.mqtt.client import MQTTMessage

    from edge_runtime.engine.protocol import Request
    from edge_runtime.settings import MqttSettings

WAIT_S = 5.0
"""For the broker, and for the other box to say that it is there."""
POLL_S = 0.05
AUDIO_S = 30.0


class MqttEngine:
    """A model on another box. A question of one turn: text, images, one recording, tools, a schema."""

    def __init__(self, settings: MqttSettings, device: str) -> None:
        """Waits until the other box says what it is.

        Args:
            settings: The broker, as for this box.
            device: The other box's name there.

        Raises:
            EdgeRuntimeError: The broker or the other box is away.
        """
        self._topics = Topics(settings.prefix, device)
        self._reply = f"{settings.prefix}/{settings.device}/larger/{secrets.token_hex(6)}"
        self._answers: dict[str, queue.Queue[dict[str, Any]]] = {}
        self._info: dict[str, Any] = {}
        self._online = False
        self._known = threading.Event()
        self._device = device
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=V5)
        set_password(self._client, settings)
        if settings.tls_ca is not None:
            self._client.tls_set(ca_certs=str(settings.tls_ca))
        self._client.on_connect = self._connected
        self._client.on_message = self._heard
        try:
            self._client.connect(settings.host, settings.port)
        except OSError as error:
            raise EdgeRuntimeError(f"the broker cannot be reached: {error.strerror or error}", "internal") from None
        self._client.loop_start()
        if not self._known.wait(WAIT_S):
            self.close()
            raise EdgeRuntimeError(f"{device} has not said that it is there", "internal")

    @property
    def info(self) -> Info:
        """As the other box has told."""
        given = self._info
        return Info(name=str(given["model"]), modalities=list(given["modalities"]), context=int(given["context"]))

    @property
    def max_audio_seconds(self) -> float:
        """Of one question."""
        return AUDIO_S if "audio" in self._info["modalities"] else 0.0

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """See `Engine.run`."""
        if not self._online:
            raise EdgeRuntimeError(f"{self._device} is offline", "internal")
        return self._pieces(request, _body(request))

    def close(self) -> None:
        """Leaves the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def _pieces(self, request: Request, body: dict[str, Any]) -> Generator[Piece, None, None]:
        name = body["id"] = secrets.token_hex(8)
        answers = self._answers[name] = queue.Queue()
        finished = False
        try:
            packed = properties(PacketTypes.PUBLISH, ResponseTopic=self._reply, CorrelationData=name.encode())
            self._client.publish(self._topics("ask"), json.dumps(body), QOS, properties=packed)
            while True:
                if request.cancel is not None and request.cancel.is_set():
                    raise EdgeRuntimeError("the request was cancelled", "cancelled")
                try:
                    answer = answers.get(timeout=POLL_S)
                except queue.Empty:
                    if not self._online:
                        raise EdgeRuntimeError(f"{self._device} went offline", "internal") from None
                    continue
                if "seq" in answer:
                    yield Piece(answer["text"])
                    continue
                finished = True
                yield _last(answer)
                return
        finally:
            del self._answers[name]
            if not finished:
                self._client.publish(self._topics("cancel"), json.dumps({"id": name}), QOS)

    def _connected(self, *_: Any) -> None:
        for topic in (self._topics("info"), self._topics("status"), f"{self._reply}/#", self._reply):
            self._client.subscribe(topic, QOS)

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        if message.topic == self._topics("status"):
            self._online = message.payload.decode(errors="replace") == ONLINE
        else:
            try:
                body = json.loads(message.payload)
            except ValueError:
                return
            if message.topic == self._topics("info"):
                self._info = body
            elif (answers := self._answers.get(str(body.get("id")))) is not None:
                answers.put(body)
        if self._online and self._info:
            self._known.set()


def _body(request: Request) -> dict[str, Any]:
    """The payload of `ask`.

    Raises:
        EdgeRuntimeError: A conversation, or media that do not fit one question.
    """
    chat = check_chat(request.messages, request.tools)
    *before, last = chat.messages
    if any(message["role"] not in {"system", "developer"} for message in before) or last["role"] != "user":
        raise EdgeRuntimeError("over MQTT the larger model takes single questions", "internal")
    body: dict[str, Any] = {"prompt": _text(last["content"]), "stream": True}
    if before:
        body["system"] = "\n".join(_text(message["content"]) for message in before)
    images = [picture(item.source, None, None) for item in chat.media if item.kind == "image"]
    sounds = [wav(media.load_audio(item.source)) for item in chat.media if item.kind == "audio"]
    if len(sounds) > 1 or len(images) + len(sounds) < len(chat.media):
        raise EdgeRuntimeError("over MQTT the larger model takes images and one recording", "internal")
    if images:
        body["images"] = [base64.b64encode(image).decode("ascii") for image in images]
    if sounds:
        body["audio"] = base64.b64encode(sounds[0]).decode("ascii")
    sampling = request.sampling
    given: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
    }
    given |= {"schema": request.schema, "tools": chat.tools}
    return body | {key: value for key, value in given.items() if value is not None}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(item.get("text", "") for item in content)


def _last(answer: dict[str, Any]) -> Piece:
    if error := answer.get("error"):
        raise EdgeRuntimeError(error["message"], error["code"])
    timing = {key: float((answer.get("timing") or {}).get(key, 0)) for key in _TIMES}
    return Piece(
        "",
        finish_reason=answer["finish_reason"],
        usage=answer["usage"],
        timing=timing,  # type: ignore[arg-type] # the keys of Timing
        tool_calls=answer.get("tool_calls") or [],
        thoughts=answer.get("thoughts") or "",
    )


_TIMES = ("load_s", "first_token_s", "decode_tokens_per_s")
