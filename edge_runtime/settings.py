"""The typed settings tree: one TOML file, overridden key by key from the environment.

Every limit and every default of the daemon stands here and nowhere else. A key `port` of the section `[mqtt]` is also
the environment variable `EDGE_RUNTIME_MQTT__PORT`. An unknown key or a bad value is an `EdgeRuntimeError` that names
the file and the line, or the variable. The keys and what they mean are the fields of the classes below.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_FILE = Path("/etc/edge-runtime/config.toml")
ENVIRONMENT_PREFIX = "EDGE_RUNTIME_"

_TOPIC_LEVEL = re.compile(r"[^+#/\x00]+")


def _host_name() -> str:
    """This host's name as a topic level."""
    return re.sub(r"[+#/\x00]", "-", socket.gethostname()) or "device"


def _range(low: float, high: float) -> dict[str, Any]:
    """Field metadata: the values that are allowed, both ends included."""
    return {"low": low, "high": high}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model answers, and with how much of the machine."""

    path: Path | None = None
    """Bundle folder; left out, the built-in model."""
    threads: int | None = field(default=None, metadata=_range(1, 1024))
    """Threads for one operator; left out, the engine's own choice."""
    context: int | None = field(default=None, metadata=_range(64, 262144))
    """Most tokens of prompt and answer together; left out, 4096 or what the model can do, if that is less."""
    describe_prompt: str | None = None
    """What `describe` asks about a picture; left out, a question that the model has learned."""
    vision_tools: bool = False
    """Whether a question about a picture may offer tools. Words in a picture could talk a model into calling them."""


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The broker, and the name under which it knows us."""

    host: str = "localhost"
    port: int = field(default=1883, metadata=_range(1, 65535))
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
    keepalive_s: int = field(default=15, metadata=_range(2, 3600))
    """A broker that is silent for this long is asked whether it lives, and given up after as long again."""
    will_delay_s: int = field(default=5, metadata=_range(0, 3600))
    """How long the broker waits before it says `offline` for us: a short break of the line is no news."""
    receive_maximum: int = field(default=16, metadata=_range(1, 65535))
    """Requests that a v5 broker may send before we have stored the first of them: what keeps memory bounded."""


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Where the daemon may write."""

    state_dir: Path | None = None
    """Folder for what must outlive a restart: accepted requests and answers that no broker has acknowledged yet, and
    the built-in model's bundle. Left out: `$STATE_DIRECTORY` under systemd, else `~/.local/state/edge-runtime` and for
    the bundle the user's cache folder."""
    remembered_ids: int = field(default=4096, metadata=_range(64, 1_000_000))
    """Newest requests whose ids are known again, so that a repeated one is answered once."""
    remembered_s: int = field(default=3600, metadata=_range(1, 31_536_000))
    """Seconds after which an id may be used anew."""


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """What one client may ask of the box."""

    queue: int = field(default=16, metadata=_range(1, 10_000))
    """Requests that may wait; the next one is answered `busy`."""
    per_client: int = field(default=8, metadata=_range(1, 10_000))
    """Requests of one client that may wait or run. A client is a Response Topic; without one, what stands before the
    last `/` of the `id`; all who have neither are one."""
    attempts: int = field(default=3, metadata=_range(1, 100))
    """A request during which the daemon died this often is answered `internal` and not tried again."""
    audio_s: float = field(default=600.0, metadata=_range(1, 86_400))
    """Longest recording, in seconds."""
    image_pixels: int = field(default=16_000_000, metadata=_range(1024, 50_000_000))
    """Largest image, in pixels (width times height). Decoding takes up to 14 bytes of memory for each."""
    images: int = field(default=8, metadata=_range(1, 256))
    """Images of one request."""
    payload_bytes: int = field(default=16 * 2**20, metadata=_range(1024, 128 * 2**20))
    """Largest MQTT payload."""
    json_depth: int = field(default=32, metadata=_range(2, 500))
    """Objects and lists inside one another in a request's JSON."""
    sessions: int = field(default=32, metadata=_range(0, 10_000))
    """Conversations that are remembered, in memory alone; the one longest unused makes room. 0: none."""
    session_turns: int = field(default=8, metadata=_range(1, 1000))
    """Questions and answers of one conversation that are remembered."""
    session_bytes: int = field(default=16_384, metadata=_range(256, 16 * 2**20))
    """Text of one conversation that is remembered."""
    session_idle_s: int = field(default=1800, metadata=_range(1, 31_536_000))
    """A conversation unused for this long is forgotten."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole tree."""

    model: ModelSettings = field(default_factory=ModelSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)


SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "mqtt": MqttSettings,
    "storage": StorageSettings,
    "limits": LimitsSettings,
}


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
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if file is not None or DEFAULT_FILE.is_file():
        _read_file(file or DEFAULT_FILE, values)
    _read_environment(os.environ if environment is None else environment, values)
    return Settings(**{name: section(**values[name]) for name, section in SECTIONS.items()})


def _read_file(file: Path, values: dict[str, dict[str, Any]]) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EdgeRuntimeError(f"{file}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgeRuntimeError(f"{file}: not TOML: {error}") from None
    for section, keys in tree.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            line = _line_of(text, None, section)
            raise EdgeRuntimeError(f"{file}:{line}: unknown section [{section}] (there are {_listed(SECTIONS)})")
        for key, value in keys.items():
            where = f"{file}:{_line_of(text, section, key)}"
            values[section][key] = _checked(section, key, value, where)


def _read_environment(environment: Mapping[str, str], values: dict[str, dict[str, Any]]) -> None:
    for name in sorted(environment):
        # Names without "__" (EDGE_RUNTIME_CACHE) are not settings.
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, key = (part.lower() for part in name.removeprefix(ENVIRONMENT_PREFIX).split("__", 1))
        where = f"environment variable {name}"
        if section not in SECTIONS:
            raise EdgeRuntimeError(f"{where}: unknown section {section} (there are {_listed(SECTIONS)})")
        values[section][key] = _checked(section, key, environment[name], where)


def _checked(section: str, key: str, value: object, where: str) -> object:
    """`value` as the type of the key, or an error that names `where`. Strings are parsed where a number is wanted."""
    fields = {entry.name: entry for entry in dataclasses.fields(SECTIONS[section])}
    if key not in fields:
        raise EdgeRuntimeError(f"{where}: unknown key {section}.{key} (there are {_listed(fields)})")
    wanted = typing.get_type_hints(SECTIONS[section])[key]
    if isinstance(wanted, types.UnionType):
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
    try:
        result = _CONVERTERS[wanted](value, from_text=where.startswith("environment"))
    except ValueError as error:
        raise EdgeRuntimeError(f"{where}: {section}.{key} must be {error}, not {value!r}") from None
    rule = fields[key].metadata
    if "low" in rule and not rule["low"] <= result <= rule["high"]:
        raise EdgeRuntimeError(f"{where}: {section}.{key} must be from {rule['low']} to {rule['high']}, not {value!r}")
    if "topic" in rule:
        levels = [result] if rule["topic"] == "one level" else result.split("/")
        if not all(_TOPIC_LEVEL.fullmatch(level) for level in levels):
            raise EdgeRuntimeError(f"{where}: {section}.{key} must be {rule['topic']} of an MQTT topic, not {value!r}")
    return result


def _integer(value: object, *, from_text: bool) -> int:
    if from_text and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("a whole number")


def _number(value: object, *, from_text: bool) -> float:
    if from_text and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("a number") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("a number")


def _truth(value: object, *, from_text: bool) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if from_text and isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _text(value: object, *, from_text: bool) -> str:  # noqa: ARG001  one shape for all converters
    if isinstance(value, str) and value:
        return value
    raise ValueError("a text")


def _path(value: object, *, from_text: bool) -> Path:
    try:
        return Path(_text(value, from_text=from_text)).expanduser()
    except ValueError:
        raise ValueError("a path") from None


_CONVERTERS: dict[type, Callable[..., Any]] = {
    bool: _truth,
    int: _integer,
    float: _number,
    str: _text,
    Path: _path,
}


def _line_of(text: str, section: str | None, key: str) -> int:
    """The line on which `key` of `[section]` is set, or on which the section `key` begins where `section` is None.

    tomllib keeps no positions, so this looks again at a text that is known to be sound TOML. A key inside an inline
    table gives the table's line; one that is written with escapes gives 1.
    """
    wanted = key if section is None else f"{section}.{key}"
    table = ""
    fallback = 1
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[{1,2}([^\]]+)\]", line)
        assignment = re.match(r"([^=#]+)=", line)
        if header:
            name = table = re.sub(r"[\s\"']", "", header[1])
        elif assignment:
            name = ".".join(filter(None, [table, re.sub(r"[\s\"']", "", assignment[1])]))
        else:
            continue
        if name == wanted or name.startswith(f"{wanted}."):
            return number
        if name == section:
            fallback = number
    return fallback


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)
