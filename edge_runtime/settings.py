"""The typed settings tree: one TOML file, overridden key by key from the environment.

Every limit and every default of the daemon stands here and nowhere else, but for its ears, eyes and voice, which
`settings_senses` has. A key `port` of the section `[mqtt]` is also the environment variable `EDGE_RUNTIME_MQTT__PORT`,
and `device` of the first `[[microphones]]` is `EDGE_RUNTIME_MICROPHONES__0__DEVICE`; a number that the file does not
have is one more. An unknown key or a bad value is an `EdgeRuntimeError` that names the file and the line, or the
variable. The keys and what they mean are the fields of the classes below.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import settings_file
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings_file import one_of, within
from edge_runtime.settings_senses import CameraSettings, MicrophoneSettings, SpeechSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/edge-runtime/config.toml")


def _host_name() -> str:
    """This host's name as a topic level."""
    return re.sub(r"[+#/\x00]", "-", socket.gethostname()) or "device"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model answers, and with how much of the machine."""

    path: Path | None = None
    """Bundle folder or GGUF file; `auto` for the best model on this box that its free memory takes; left out, the
    built-in model."""
    folder: Path | None = None
    """Where `auto` looks, beside the caches."""
    threads: int | None = field(default=None, metadata=within(1, 1024))
    """Threads for one operator; left out, the engine's own choice."""
    spin_us: int | None = field(default=None, metadata=within(0, 1_000_000))
    """Microseconds for which a thread waits for work before it sleeps, while an answer is computed; left out, 50.
    Longer was no faster where nothing else ran, and slower where something did; 0 is kindest to a box whose cores are
    busy. Of a bundle only."""
    context: int | None = field(default=None, metadata=within(64, 262144))
    """Most tokens of prompt and answer together; left out, 4096 or what the model can do, if that is less."""
    memory_budget: str | None = None
    """What the model may take, such as "2G": one that does not fit is refused before it is loaded. Left out: what the
    machine has."""
    kv_type: str | None = field(default=None, metadata=one_of("fp32", "fp16", "int8"))
    """How keys and values are kept; int8 takes a quarter of the memory. Left out: fp32 for a bundle, fp16 for a
    GGUF file, or int8 where memory is short."""
    sessions: int = field(default=1, metadata=within(1, 64))
    """Requests that may run at a time, each with a context of its own. The daemon runs one at a time by itself."""
    providers: str = field(default="cpu", metadata=one_of("cpu", "cuda"))
    """What computes: the CPU, or an NVIDIA GPU where ONNX Runtime can."""
    describe_prompt: str | None = None
    """What `describe` asks about a picture; left out, a question that the model has learned."""
    vision_tools: bool = False
    """Whether a question about a picture may offer tools. Words in a picture could talk a model into calling them."""


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How GGUF files are run. Left out, everything is found out."""

    server: Path | None = None
    """The `llama-server` to run; left out, that on PATH, else the one inside the extra `gguf`."""
    projector: Path | None = None
    """GGUF file of the image and audio towers; left out, one beside the model that fits it."""
    drafter: Path | None = None
    """GGUF file of a model that drafts; left out, one beside the model that fits it."""
    gpu_layers: int | None = field(default=None, metadata=within(0, 1000))
    """Layers that the graphics processor holds; left out, as many as its free memory takes."""


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A larger model beside the one of `[model]`: here (`path`) or elsewhere (`url`, `device`). None of them: none."""

    path: Path | None = None
    """Bundle folder or GGUF file on this box."""
    url: str | None = None
    """A llama-server or another edge-runtime, such as `http://big-box:8080`."""
    token_file: Path | None = None
    """File whose first line is the bearer token for `url`; a bare name is one of systemd's credentials."""
    device: str | None = field(default=None, metadata={"topic": "one level"})
    """Another edge-runtime at the same broker, by its `mqtt.device`."""
    when: tuple[str, ...] = ("request",)
    """What goes there: `always`; `modality`: what has media of `modalities`; `length`: prompts of more than `tokens`;
    `request`: only what asks for it with `"large": true`, which always goes there."""
    modalities: tuple[str, ...] = ("image", "audio", "video")
    """Media that are for the larger model."""
    tokens: int = field(default=1024, metadata=within(1, 262144))
    """Length from which a prompt is for the larger model, at four bytes a token."""


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The broker, and the name under which it knows us."""

    host: str = "localhost"
    port: int = field(default=1883, metadata=within(1, 65535))
    device: str = field(default_factory=_host_name, metadata={"topic": "one level"})
    """Second level of every topic; two daemons on one broker need two names."""
    prefix: str = field(default="edge-runtime", metadata={"topic": "levels"})
    """First level or levels of every topic."""
    share_group: str | None = field(default=None, metadata={"topic": "one level"})
    """Name of a stream of requests that several boxes share: what is sent to `<prefix>/<share_group>/ask` goes to one
    of them (`$share`). Left out: none."""
    username: str | None = None
    password_file: Path | None = None
    """File whose first line is the password, read again at each connection; a bare name is one of systemd's
    credentials."""
    tls_ca: Path | None = None
    """CA certificates in PEM that sign the broker's; when set, the connection uses TLS."""
    keepalive_s: int = field(default=15, metadata=within(2, 3600))
    """A broker that is silent for this long is asked whether it lives, and given up after as long again."""
    will_delay_s: int = field(default=5, metadata=within(0, 3600))
    """How long the broker waits before it says `offline` for us: a short break of the line is no news."""
    receive_maximum: int = field(default=16, metadata=within(1, 65535))
    """Requests that a v5 broker may send before we have stored the first of them: what keeps memory bounded."""
    discovery: bool = False
    """Whether the box tells Home Assistant what it has, by MQTT discovery. Switched off again, it takes that back."""
    discovery_prefix: str = field(default="homeassistant", metadata={"topic": "levels"})
    """Home Assistant's own topics begin with it."""


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Where the daemon may write."""

    state_dir: Path | None = None
    """Folder for what must outlive a restart: accepted requests and answers that no broker has acknowledged yet, and
    the built-in model's bundle. Left out: `$STATE_DIRECTORY` under systemd, else `~/.local/state/edge-runtime` and for
    the bundle the user's cache folder."""
    remembered_ids: int = field(default=4096, metadata=within(64, 1_000_000))
    """Newest requests whose ids are known again, so that a repeated one is answered once."""
    remembered_s: int = field(default=3600, metadata=within(1, 31_536_000))
    """Seconds after which an id may be used anew."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP server: who may reach it, and how much of the box one connection may take."""

    listen: str | None = None
    """`host:port`, or `off`. Left out: `127.0.0.1:8080`, if nobody else has it."""
    token_file: Path | None = None
    """File whose first line is the bearer token that every client must show; a bare name is one of systemd's
    credentials. Needed unless `listen` is a loopback address."""
    tls_cert: Path | None = None
    """Certificate chain in PEM; when set, the server speaks HTTPS. Browsers lend a microphone to HTTPS and to the
    box's own screen only."""
    tls_key: Path | None = None
    """The certificate's key in PEM; left out, it is in `tls_cert`."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other servers that may use the API from a browser, such as `https://panel.lan`."""
    hosts: tuple[str, ...] = ()
    """Names by which a browser may call a server without a token, beside `localhost` and the addresses themselves:
    for a proxy in front. All others are refused, so that no page can reach the box by a name that it makes up."""
    model_names: tuple[str, ...] = ()
    """Further names that the model answers to, for clients that insist on one, such as `whisper-1`."""
    connections: int = field(default=256, metadata=within(8, 100_000))
    """Connections at a time. When there are more, the longest idle one makes room."""
    header_s: int = field(default=10, metadata=within(1, 600))
    """Seconds in which a client must have sent the head of a request, and until an unused connection is closed."""
    body_s: int = field(default=60, metadata=within(1, 3600))
    """Seconds in which a client must have sent its request, or taken a piece of an answer."""
    voices: int = field(default=8, metadata=within(1, 1000))
    """Spoken conversations at a time, each of which has a detector of speech of its own."""


@dataclass(frozen=True, slots=True)
class WyomingSettings:
    """Speech to text for Home Assistant. The protocol knows no passwords: whoever reaches the port may use it."""

    listen: str | None = None
    """`host:port`, such as `0.0.0.0:10300`. Left out: not there."""
    announce: bool = True
    """Whether the box says by zeroconf that it is there, so that Home Assistant finds it; never on loopback."""
    language: str = "en"
    """Language that is spoken where Home Assistant does not say: its ISO 639-1 code."""
    connections: int = field(default=16, metadata=within(1, 10_000))
    """Connections at a time; further ones are closed."""


@dataclass(frozen=True, slots=True)
class KioskSettings:
    """The page at `/`, for whoever stands in front of the box. `docs/kiosk.md` shows it."""

    enabled: bool = True
    """Whether there is such a page. The owner's page, `/status`, always is."""
    title: str | None = None
    """What stands at the top; left out, a word of the language. `strings` has it by language."""
    greeting: str | None = None
    """What the page says to who comes; left out, as above."""
    suggestions: tuple[str, ...] = ()
    """Questions to be touched."""
    language: str = "en"
    """Language that the page begins with, and that is spoken: its ISO 639-1 code."""
    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh")
    """Languages to choose from. Those that the page does not know need all their `strings`."""
    strings: dict[str, Any] = field(default_factory=dict)
    """By language, what the page says in other words: `[kiosk.strings.de]`, and in it `title`, `greeting`,
    `suggestions` or any other key of `edge_runtime/kiosk/static/strings.js`."""
    accent: str = "#0b5d51"
    """Colour of what can be touched. Text must be legible: a contrast of 4.5 to the background."""
    background: str = "#f7f3ea"
    """Colour of the page."""
    text: str = "#1d1a16"
    """Colour of what is written."""
    system: str | None = None
    """How to answer: the system message."""
    max_tokens: int | None = field(default=None, metadata=within(1, 1_000_000))
    """Longest answer; left out, the model's own limit."""
    microphone: bool = True
    """Whether questions can be spoken."""
    hands_free: bool = False
    """Whether the page listens by itself from the first touch on, instead of while its button is held."""
    camera: bool = True
    """Whether a picture can be taken for a question."""
    speak: bool = True
    """Whether answers are read aloud, where there is a voice; whoever asks can switch it."""
    screen_keys: bool = False
    """Whether there are keys on the screen to write with, for a box that has no keyboard."""
    idle_s: int = field(default=90, metadata=within(20, 3600))
    """After so many seconds in which nothing happens the page asks whether anybody is there, and 20 seconds later
    forgets all that was said."""


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """What one client may ask of the box."""

    queue: int = field(default=16, metadata=within(1, 10_000))
    """Requests that may wait; the next one is answered `busy`."""
    per_client: int = field(default=8, metadata=within(1, 10_000))
    """Requests of one client that may wait or run. A client is a Response Topic; without one, what stands before the
    last `/` of the `id`; all who have neither are one."""
    attempts: int = field(default=3, metadata=within(1, 100))
    """A request during which the daemon died this often is answered `internal` and not tried again."""
    audio_s: float = field(default=600.0, metadata=within(1, 86_400))
    """Longest recording, in seconds."""
    image_pixels: int = field(default=16_000_000, metadata=within(1024, 50_000_000))
    """Largest image, in pixels (width times height). Decoding takes up to 14 bytes of memory for each."""
    images: int = field(default=8, metadata=within(1, 256))
    """Images of one request."""
    payload_bytes: int = field(default=16 * 2**20, metadata=within(1024, 128 * 2**20))
    """Largest MQTT payload."""
    json_depth: int = field(default=32, metadata=within(2, 500))
    """Objects and lists inside one another in a request's JSON."""
    sessions: int = field(default=32, metadata=within(0, 10_000))
    """Conversations that are remembered, in memory alone; the one longest unused makes room. 0: none."""
    session_turns: int = field(default=8, metadata=within(1, 1000))
    """Questions and answers of one conversation that are remembered."""
    session_bytes: int = field(default=16_384, metadata=within(256, 16 * 2**20))
    """Text of one conversation that is remembered."""
    session_idle_s: int = field(default=1800, metadata=within(1, 31_536_000))
    """A conversation unused for this long is forgotten."""


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """From when on the box has it too hard: first cameras are looked at less often, then new requests are `busy`."""

    slow_c: float | None = field(default=None, metadata=within(20, 150))
    """Degrees Celsius; left out, 3 below where the kernel throttles the part in question, or 80."""
    refuse_c: float | None = field(default=None, metadata=within(20, 150))
    """Degrees Celsius; left out, 6 below where the kernel shuts down, or 95."""
    memory_slow_percent: float = field(default=10.0, metadata=within(0.1, 100))
    """Part of ten seconds in which something waited for memory (PSI)."""
    memory_refuse_percent: float = field(default=40.0, metadata=within(0.1, 100))
    """As above."""
    cpu_slow_percent: float = field(default=90.0, metadata=within(1, 101))
    """Part of ten seconds in which something waited for a processor (PSI); 101: never."""
    used_slow_percent: float = field(default=93.0, metadata=within(1, 101))
    """Memory in use, of the machine or of the service's limit, whichever is tighter; 101: never."""
    used_refuse_percent: float = field(default=97.0, metadata=within(1, 101))
    """As above."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written to stderr, or the journal: never what was asked or answered."""

    level: str = field(default="info", metadata=one_of("debug", "info", "warning", "error"))
    """The least important kind of line."""
    format: str = field(default="text", metadata=one_of("text", "json"))
    """`text` with `key=value`, or one JSON object a line."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole tree."""

    model: ModelSettings = field(default_factory=ModelSettings)
    llama: LlamaSettings = field(default_factory=LlamaSettings)
    route: RouteSettings = field(default_factory=RouteSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    wyoming: WyomingSettings = field(default_factory=WyomingSettings)
    kiosk: KioskSettings = field(default_factory=KioskSettings)
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    pressure: PressureSettings = field(default_factory=PressureSettings)
    log: LogSettings = field(default_factory=LogSettings)
    microphones: tuple[MicrophoneSettings, ...] = ()
    cameras: tuple[CameraSettings, ...] = ()


SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "llama": LlamaSettings,
    "route": RouteSettings,
    "mqtt": MqttSettings,
    "storage": StorageSettings,
    "limits": LimitsSettings,
    "http": HttpSettings,
    "wyoming": WyomingSettings,
    "kiosk": KioskSettings,
    "speech": SpeechSettings,
    "pressure": PressureSettings,
    "log": LogSettings,
}
LISTS: dict[str, type[Any]] = {"microphones": MicrophoneSettings, "cameras": CameraSettings}
"""Sections of which there may be any number, each with a `name` of its own."""


def state_folder(storage: StorageSettings) -> Path:
    """The folder for what must outlive a restart; see `StorageSettings.state_dir`."""
    if storage.state_dir is not None:
        return storage.state_dir
    if given := os.environ.get("STATE_DIRECTORY"):  # systemd's; several are parted by colons
        return Path(given.split(":", maxsplit=1)[0])
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path("~/.local/state").expanduser()) / "edge-runtime"


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the settings.

    Args:
        file: TOML file. None reads `DEFAULT_FILE` where it exists, else defaults only.
        environment: Overrides; None is the process's own environment.

    Raises:
        EdgeRuntimeError: A missing or broken file, an unknown key or a bad value.
    """
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    values = settings_file.read(SECTIONS, LISTS, chosen, os.environ if environment is None else environment)
    for microphone in values["microphones"]:
        if microphone.mode == "wake-word" and not microphone.wake_words:
            raise EdgeRuntimeError(f"microphone {microphone.name}: the mode wake-word needs wake_words")
    return Settings(**values)
