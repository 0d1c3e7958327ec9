"""`edge-runtime demo`: the whole product on loopback, with answers that can be right or wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edge_runtime import builtin
from edge_runtime.cli._broker import Broker, broker, child
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Generator

    from paho.mqtt.client import Client

HELP = (
    "Starts an MQTT broker and the daemon with the built-in model on loopback, sends a recorded voice question and an "
    "image question by MQTT, prints what was asked and answered, and stops everything. Exits 0 only if every answer is "
    "right. Needs no network, no root and no settings."
)
EXAMPLE = "edge-runtime demo"

ASSETS = Path(__file__).parent.parent / "demo_assets"
# The first start makes the built-in model's bundle: minutes on a slow board.
READY_S = 300.0
ANSWER_S = 120.0
BASE = "edge-runtime/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--model", type=Path, metavar="M", help="bundle folder (default: the built-in model)")


def run(args: argparse.Namespace) -> int:
    """Runs the demo; 0 when every answer is right, else 1."""
    # SIGTERM ends it like Ctrl-C: through the blocks that stop the children.
    signal.signal(signal.SIGTERM, _interrupt)
    paint = _Paint(colour=sys.stdout.isatty())
    questions = json.loads((ASSETS / "demo.json").read_text(encoding="utf-8"))
    with broker() as where, tempfile.TemporaryDirectory(prefix="edge-runtime-demo-") as folder:
        print(f"broker   {where.name} on 127.0.0.1:{where.port}", flush=True)
        config = Path(folder, "config.toml")
        config.write_text(_config(where.port, args.model, folder), encoding="utf-8")
        # What the daemon keeps is gone with the demo; the bundle that is made once stays in the cache.
        os.environ.setdefault("EDGE_RUNTIME_CACHE", str(builtin.cache_path()))
        log = Path(folder, "serve.log")
        started = time.monotonic()
        with (
            child([sys.executable, "-m", "edge_runtime", "serve", "--config", str(config)], log) as daemon,
            _Line(where) as line,
        ):
            info = line.wait_online(daemon, log)
            what = f"{info['model']} ({', '.join(info['modalities'])})"
            print(f"daemon   online with {what} after {time.monotonic() - started:.1f} s", flush=True)
            right = sum([_ask(line, question, paint) for question in questions])
    good = right == len(questions)
    print(paint(f"\n{right} of {len(questions)} answers are right", good=good))
    return 0 if good else 1


def _ask(line: _Line, question: dict[str, Any], paint: _Paint) -> bool:
    """Sends one question, prints it with its answer; whether it was right."""
    data = (ASSETS / question["file"]).read_bytes()
    words = f' "{question["prompt"]}"' if question.get("prompt") else ""
    print(
        f"\n{paint(question['title'], bold=True)}: {question['file']}{words}  -> {BASE}/{question['topic']}", flush=True
    )
    started = time.monotonic()
    answer = line.ask(question, data)
    seconds = time.monotonic() - started
    if "error" in answer:
        print(paint(f"  failed    {answer['error']['code']}: {answer['error']['message']}", good=False))
        return False
    good = _plain(answer["text"]) == _plain(question["expected"])
    print(paint(f"  answer    {answer['text']}", good=good) + f"  ({seconds:.2f} s)")
    print(f"  expected  {question['expected']}  {paint('right' if good else 'WRONG', good=good)}", flush=True)
    return good


class _Line:
    """The demo's own MQTT client, as any other program would have one."""

    def __init__(self, where: Broker) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        version = MQTTProtocolVersion.MQTTv5 if where.speaks_v5 else MQTTProtocolVersion.MQTTv311
        self._arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._client: Client = Client(CallbackAPIVersion.VERSION2, protocol=version)
        self._client.on_message = lambda _client, _data, message: self._arrived.put(
            (message.topic.removeprefix(f"{BASE}/"), bytes(message.payload))
        )
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(f"{BASE}/{name}", 1) for name in ("status", "info", "answer")]
        )
        self._where = where

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._where.port)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_online(self, daemon: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
        """Waits for `online`; the daemon's info."""
        seen: dict[str, bytes] = {}
        for name, payload in self._until(READY_S, daemon, log):
            seen[name] = payload
            if seen.get("status") == b"online" and "info" in seen:
                info: dict[str, Any] = json.loads(seen["info"])
                return info
        raise EdgeRuntimeError(f"the daemon was not ready within {READY_S:.0f} s", "internal")

    def ask(self, question: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Sends a question; its final answer."""
        payload: bytes | str = data
        if question["topic"] == "ask":
            text = base64.b64encode(data).decode()
            media = {"audio": text} if question["file"].endswith(".wav") else {"images": [text]}
            payload = json.dumps({"id": question["title"], "prompt": question["prompt"], **media})
        self._client.publish(f"{BASE}/{question['topic']}", payload, qos=1)
        for name, answer in self._until(ANSWER_S):
            if name == "answer":
                body: dict[str, Any] = json.loads(answer)
                return body
        return {"error": {"code": "internal", "message": f"no answer within {ANSWER_S:.0f} s"}}

    def _until(
        self, seconds: float, daemon: subprocess.Popen[bytes] | None = None, log: Path | None = None
    ) -> Generator[tuple[str, bytes], None, None]:
        """What arrives within `seconds`, as long as `daemon` lives."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if daemon is not None and daemon.poll() is not None and log is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1].removeprefix("edge-runtime: ") if lines else f"exit status {daemon.returncode}"
                raise EdgeRuntimeError(f"the daemon ended: {last}", "internal")
            with contextlib.suppress(queue.Empty):
                yield self._arrived.get(timeout=0.2)


class _Paint:
    """Colour, where a person looks on."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, *, good: bool | None = None, bold: bool = False) -> str:
        """`text` in green or red, or bold."""
        code = "1" if bold else {True: "32", False: "31", None: ""}[good]
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text


def _config(port: int, model: Path | None, state: str) -> str:
    path = f"[model]\npath = {json.dumps(str(model.resolve()), ensure_ascii=False)}\n" if model else ""
    prefix, device = BASE.split("/")
    broker_keys = f'host = "127.0.0.1"\nport = {port}\nprefix = "{prefix}"\ndevice = "{device}"\n'
    return f"{path}[storage]\nstate_dir = {json.dumps(state)}\n[mqtt]\n{broker_keys}"


def _plain(text: str) -> str:
    """Words and digits alone: case, stops and spaces are not what is right or wrong."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
