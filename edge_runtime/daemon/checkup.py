"""What `edge-runtime doctor` looks at: each check gives a line, and where something is wrong, how to mend it."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from edge_runtime import machine
from edge_runtime.daemon.client import V5, V311, VERSION_NAMES, connect_arguments, make_client
from edge_runtime.daemon.topics import Topics
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import state_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paho.mqtt.enums import MQTTProtocolVersion

    from edge_runtime.settings import Settings
    from edge_runtime.settings_senses import CameraSettings, MicrophoneSettings

State = Literal["ok", "note", "bad"]

BROKER_S = 10.0
HTTP_S = 3.0
# What the program takes beside the model: media being decoded, requests that wait, Python's own growth.
HEADROOM_BYTES = 256 * 2**20
HEADROOM = 1.15
# Where settings name no context, a model takes this much of it at most.
CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        state: `ok`; `note`: it works without; `bad`: it must be mended.
        topic: What was looked at.
        line: What is there, or how to mend it.
    """

    state: State
    topic: str
    line: str


def examine(settings: Settings, unit_file: Path | None = None) -> Iterator[Finding]:
    """Looks at everything, one after the other; never raises.

    Args:
        settings: What the box is meant to have.
        unit_file: Of the systemd service, where that matters.
    """
    checks: list[Callable[[], Finding | list[Finding]]] = [
        _machine,
        _runtime,
        lambda: _model(settings),
        lambda: _llama(settings),
        lambda: _state(settings),
        lambda: _broker(settings),
        lambda: _http(settings),
        *[lambda microphone=microphone: _microphone(microphone) for microphone in settings.microphones],
        *[lambda camera=camera: _camera(camera) for camera in settings.cameras],
        lambda: _voice(settings),
        _pressure,
    ]
    if unit_file is not None:
        checks.append(lambda: _service(unit_file))
    for check in checks:
        try:
            found = check()
        except EdgeRuntimeError as error:
            found = Finding("bad", "settings", str(error))
        except OSError as error:
            found = Finding("bad", "system", f"{error.filename or ''} {error.strerror or error}".strip())
        yield from found if isinstance(found, list) else [found]


def memory_needed(settings: Settings) -> int:
    """Bytes that the model takes at most, by its memory plan.

    Raises:
        EdgeRuntimeError: There is no such model.
    """
    from edge_runtime import auto, builtin  # noqa: PLC0415 - the command's start stays quick
    from edge_runtime.bundle.manifest import is_bundle, read_manifest  # noqa: PLC0415
    from edge_runtime.engine.onnx.memory import plan  # noqa: PLC0415

    chosen = settings.model
    path = chosen.path
    if path == Path(auto.NAME):
        path = auto.choose([chosen.folder] if chosen.folder else [])
    path = path or builtin.bundle_path()
    if path.suffix == ".gguf":
        from edge_runtime.engine.llama.load import needed  # noqa: PLC0415

        return needed(path, chosen.context or CONTEXT)
    if not is_bundle(path):
        raise EdgeRuntimeError(f"{path} is no bundle: make one with edge-runtime export")
    kv_type: Any = chosen.kv_type or "fp32"
    planned = plan(read_manifest(path), context=chosen.context or CONTEXT, kv_type=kv_type, sessions=chosen.sessions)
    return max(planned.total, planned.loading)


def memory_limit(settings: Settings) -> int:
    """Bytes for the service's MemoryMax: what the model needs, room for requests, nothing more."""
    limits = settings.limits
    media = 14 * limits.image_pixels + int(limits.audio_s) * 16_000 * 4 * 3 + 4 * limits.payload_bytes
    return int(HEADROOM * memory_needed(settings)) + media + HEADROOM_BYTES


def _machine() -> Finding:
    names = os.uname()
    memory = machine.memory()
    return Finding(
        "ok", "machine", f"{names.machine}, {os.cpu_count()} cores, {machine.readable(memory.total)} of memory"
    )


def _runtime() -> Finding:
    import onnxruntime  # noqa: PLC0415

    import edge_runtime.engine  # noqa: F401, PLC0415 - switches telemetry off before onnxruntime is there

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding("ok", "providers", f"ONNX Runtime {onnxruntime.__version__}: {', '.join(providers)}")


def _model(settings: Settings) -> list[Finding]:
    name = str(settings.model.path or "the built-in model")
    try:
        needed = memory_needed(settings)
    except EdgeRuntimeError as error:
        return [Finding("bad", "model", str(error))]
    memory = machine.memory()
    says = f"{name} takes about {machine.readable(needed)}, {machine.readable(memory.available)} are free"
    if needed > memory.total:
        return [Finding("bad", "memory", f"{says}: a smaller model or context is needed (edge-runtime models)")]
    if needed > memory.available:
        return [Finding("note", "memory", f"{says} now: it will push others out, or die, unless it runs already")]
    return [Finding("ok", "memory", says)]


def _llama(settings: Settings) -> Finding:
    from edge_runtime.engine.llama.program import describe  # noqa: PLC0415

    paths = [path for path in (settings.model.path, settings.route.path) if path is not None]
    wanted = settings.llama.server is not None or any(path.suffix == ".gguf" for path in paths)
    try:
        return Finding("ok", "llama.cpp", f"{describe(settings.llama.server)}, for GGUF files")
    except EdgeRuntimeError as error:
        return Finding("bad" if wanted else "note", "llama.cpp", str(error))


def _state(settings: Settings) -> Finding:
    folder = state_folder(settings.storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("bad", "state", f"{folder} cannot be written ({error.strerror}): set storage.state_dir")
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < 64 * 2**20:
        return Finding("bad", "state", f"{folder}: {machine.readable(free)} free; requests will be refused: make room")
    return Finding("ok", "state", f"{folder}, {machine.readable(free)} free")


def _broker(settings: Settings) -> Finding:
    """Connects under another name than the daemon's, so that a daemon at work is not thrown out."""
    mqtt = settings.mqtt
    where = f"{mqtt.host}:{mqtt.port}"
    for version in (V5, V311):
        try:
            answer = _connect(settings, version)
        except EdgeRuntimeError as error:
            return Finding("bad", "broker", str(error))
        except OSError as error:
            return Finding(
                "bad",
                "broker",
                f"{where} cannot be reached ({error.strerror or error}): is mosquitto installed and running, is "
                "mqtt.host right?",
            )
        if answer == "":
            return Finding("ok", "broker", f"{where} takes us, with MQTT {VERSION_NAMES[version]}")
        if answer is not None and "version" not in answer:
            return Finding("bad", "broker", f"{where}: {answer}: see mqtt.username and mqtt.password_file")
    return Finding("bad", "broker", f"{where} does not answer as an MQTT broker")


def _connect(settings: Settings, version: MQTTProtocolVersion) -> str | None:
    """What the broker says to us: "" when it takes us; None: nothing."""
    mqtt = settings.mqtt
    answers: queue.Queue[str] = queue.Queue()
    client = make_client(mqtt, Topics.of(mqtt), version)
    client._client_id = f"edge-runtime-doctor-{os.getpid()}".encode()  # noqa: SLF001 - paho has no other way
    client.will_clear()
    client.on_connect = lambda _, __, ___, reason, ____: answers.put(str(reason).lower() if reason.is_failure else "")
    told = connect_arguments(mqtt, settings.limits.payload_bytes, version)
    if version == V5:
        told["properties"].SessionExpiryInterval = 0
    client.connect(mqtt.host, mqtt.port, mqtt.keepalive_s, **told)
    client.loop_start()
    try:
        return answers.get(timeout=BROKER_S / 2)
    except queue.Empty:
        return None
    finally:
        client.disconnect()
        client.loop_stop()


def _http(settings: Settings) -> Finding:
    listen = settings.http.listen
    if listen == "off":
        return Finding("ok", "http", "off")
    from edge_runtime.daemon.http.server import DEFAULT_ADDRESS, parse_address  # noqa: PLC0415 - the command's start stays quick

    try:
        host, port = DEFAULT_ADDRESS if listen is None else parse_address(listen, "http.listen")
    except EdgeRuntimeError as error:
        return Finding("bad", "http", str(error))
    asked = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - asked, not bound
    if settings.http.tls_cert is None:
        connection = http.client.HTTPConnection(asked, port, timeout=HTTP_S)
    else:  # whether the certificate is right is for its clients to judge
        unverified = ssl._create_unverified_context()  # noqa: S323, SLF001 - nothing secret is said
        connection = http.client.HTTPSConnection(asked, port, timeout=HTTP_S, context=unverified)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse().read(4096)
    except ConnectionRefusedError:
        return Finding("note", "http", f"nobody listens at {host}:{port}: the daemon does not run")
    except (OSError, http.client.HTTPException):
        answer = b""
    finally:
        connection.close()
    ours = re.search(rb'\{"status": ?"([^"]+)"', answer)
    if ours and ours[1] == b"ok":
        return Finding("ok", "http", f"the daemon runs and is well at {host}:{port}")
    if ours:
        return Finding("bad", "http", f"the daemon at {host}:{port} says: {ours[1].decode(errors='replace')}")
    return Finding("bad", "http", f"{host}:{port} is another program's: choose another http.listen")


def _microphone(settings: MicrophoneSettings) -> list[Finding]:
    from edge_runtime.perception.microphone import Microphone  # noqa: PLC0415

    topic = f"microphone {settings.name}"
    microphone = Microphone(settings.name, settings.device)
    try:
        block = next(microphone.blocks())
    finally:
        microphone.close()
    if block is None:
        detail = microphone.status.detail
        return [Finding("bad", topic, f"{detail}{_sound_permission()}")]
    found = [Finding("ok", topic, "gives sound")]
    if settings.mode == "wake-word":
        from edge_runtime.perception.wake import wake_words  # noqa: PLC0415

        missing = [word for word in settings.wake_words if word not in wake_words() and not Path(word).is_file()]
        if missing:
            says = f"no wake word {missing[0]}: pip install 'edge-runtime[wake]', or one of its names or a file"
            found.append(Finding("bad", topic, says))
    return found


def _sound_permission() -> str:
    for device in Path("/dev/snd").glob("*"):
        if not os.access(device, os.R_OK | os.W_OK):
            return f"; {device} is not ours to read: add the user to the group audio"
    return ""


def _camera(settings: CameraSettings) -> Finding:
    from edge_runtime.perception.camera import Camera, CameraOptions  # noqa: PLC0415

    topic = f"camera {settings.name}"
    path = Path(settings.source)
    if settings.source.startswith("/dev/") and path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return Finding("bad", topic, f"{path} is not ours to read: add the user to the group video")
    options = CameraOptions(settings.source, open_s=settings.open_s, read_s=settings.read_s)
    try:
        with Camera(settings.name, options) as camera:
            image = camera.latest(timeout_s=settings.open_s + settings.read_s).image
    except EdgeRuntimeError as error:
        host = urlsplit(settings.source).hostname if "://" in settings.source else None
        hint = f": is {host} on, and reachable from here?" if host else ""
        return Finding("bad", topic, f"{error}{hint}")
    return Finding("ok", topic, f"gives pictures of {image.width} x {image.height}")


def _voice(settings: Settings) -> list[Finding]:
    if settings.speech.engine == "off" or not any(each.speak for each in settings.microphones):
        return [Finding("ok", "voice", "not needed")]
    from edge_runtime.perception.echo import echo_cancellation  # noqa: PLC0415
    from edge_runtime.perception.voice import find_voice  # noqa: PLC0415

    try:
        voice = find_voice(settings.speech.voice, settings.speech.words_per_minute)
    except EdgeRuntimeError as error:
        return [Finding("bad", "voice", str(error))]
    echo = echo_cancellation()
    return [
        Finding("ok", "voice", type(voice).__name__.lower()),
        Finding("ok" if echo.active else "note", "echo", echo.line),
    ]


def _pressure() -> Finding:
    zones = list(Path("/sys/class/thermal").glob("thermal_zone*"))
    missing = [] if Path("/proc/pressure/memory").is_file() else ["no PSI: add psi=1 to the kernel's command line"]
    if not zones:
        missing.append("no temperatures")
    if missing:
        return Finding("note", "pressure", f"{'; '.join(missing)}: what is not told cannot slow the box down")
    return Finding("ok", "pressure", f"memory and processor pressure, {len(zones)} temperatures")


def _service(unit_file: Path) -> Finding:
    if not unit_file.is_file():
        return Finding("note", "service", "not installed: deploy/install.sh makes it a service")
    limit = None
    with contextlib.suppress(OSError):
        text = (unit_file.parent / f"{unit_file.name}.d/memory.conf").read_text(encoding="ascii")
        limit = re.search(r"^MemoryMax=(\d+)", text, re.MULTILINE)
    if limit is None:
        return Finding("note", "service", "no memory limit of the model's own: edge-runtime doctor --write-limits")
    return Finding("ok", "service", f"installed, may take {machine.readable(int(limit[1]))}")
