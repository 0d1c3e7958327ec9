"""The program that talks to the sound card: `python -m edge_runtime.perception.pcm record|play|list [DEVICE] [RATE]`.

A process of its own for each microphone and loudspeaker, because PortAudio learns of new devices only when it starts,
prints on stderr at every failed attempt, and waits for ever on a driver that hangs. Reads and writes block, so it needs
no callbacks from C and runs under systemd's MemoryDenyWriteExecute.

`record` writes one line of JSON, `{"rate", "device"}`, then blocks of a flag byte (1: samples were lost before it) and
`BLOCK_S` seconds of int16 mono. `play` writes the same line when the device is open, reads int16 mono at that rate
until its input ends, and ends when all of it was heard. `list` writes one line, the devices. What went wrong is the
last line on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

BLOCK_S = 0.032
LATENCY_S = 0.1
"""Asked of the sound system: enough for a busy board, little enough to notice speech in time."""

LATE_S = 1.0
"""Whoever listens and takes nothing for this long, beyond what the pipe holds, goes on with the present."""


def main(arguments: list[str]) -> int:
    """Runs one verb."""
    verb, device, rate = [*arguments, "", ""][:3]
    output, complaints = os.fdopen(os.dup(1), "wb", buffering=0), os.fdopen(os.dup(2), "w")
    for descriptor in (1, 2):  # PortAudio and ALSA speak of their troubles on both
        _silence(descriptor)
    try:
        import sounddevice  # noqa: PLC0415 - fails where libportaudio2 is missing

        if verb == "list":
            _say(output, {"devices": _devices(sounddevice)})
        elif verb == "record":
            _record(sounddevice, output, device, int(rate or 16_000))
        else:
            _play(sounddevice, output, device, int(rate or 16_000))
    except BrokenPipeError:
        return 0  # whoever listened is gone
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever reads the complaints is to know
        missing = isinstance(error, OSError) and "PortAudio library" in str(error)
        reason = "PortAudio is missing: apt-get install libportaudio2" if missing else str(error)
        complaints.write(" ".join(reason.split()) + "\n")
        complaints.flush()
        return 1
    return 0


def _record(sounddevice: Any, output: Any, device: str, rate: int) -> None:
    index = _find(sounddevice, device, "input")
    rate = _rate(sounddevice, index, "input", rate)
    stream = sounddevice.RawInputStream(rate, 0, index, 1, "int16", LATENCY_S)
    with stream:
        count = round(rate * BLOCK_S)
        block, lost = stream.read(count)
        _say(output, {"rate": rate, "device": sounddevice.query_devices(index)["name"]})
        while True:
            begun = time.monotonic()
            _write(output, bytes([lost]) + block[:])
            if late := time.monotonic() - begun > LATE_S:  # nobody wants what was said then
                stream.abort()
                stream.start()
            block, lost = stream.read(count)
            lost = lost or late


def _play(sounddevice: Any, output: Any, device: str, rate: int) -> None:
    index = _find(sounddevice, device, "output")
    rate = _rate(sounddevice, index, "output", rate)
    stream = sounddevice.RawOutputStream(rate, 0, index, 1, "int16", LATENCY_S)
    _say(output, {"rate": rate, "device": sounddevice.query_devices(index)["name"]})
    left = b""
    while data := os.read(0, 2 * round(rate * BLOCK_S)):
        if not stream.active:
            stream.start()  # not before there is something to be heard
        left += data
        even = len(left) // 2 * 2
        stream.write(left[:even])
        left = left[even:]
    if stream.active:
        stream.stop()  # waits until all was heard
    stream.close()


def _devices(sounddevice: Any) -> list[dict[str, Any]]:
    keys = {"index": "index", "name": "name", "inputs": "max_input_channels", "outputs": "max_output_channels"}
    return [{key: device[theirs] for key, theirs in keys.items()} for device in sounddevice.query_devices()]


def _find(sounddevice: Any, wanted: str, kind: str) -> int:
    """The device's index: `wanted` is an index, a name or part of one; "" is the default."""
    able: dict[int, str] = {d["index"]: d["name"] for d in sounddevice.query_devices() if d[f"max_{kind}_channels"] > 0}
    if not able:
        raise ValueError(f"this machine has no sound {kind}")
    if not wanted:
        default = int(sounddevice.default.device[kind == "output"])
        return default if default in able else next(iter(able))
    if wanted.isdigit() and int(wanted) in able:
        return int(wanted)
    for matches in (lambda name: name == wanted, lambda name: wanted.casefold() in name.casefold()):
        for index, name in able.items():
            if matches(name):
                return index
    raise ValueError(f"no sound {kind} is called {wanted!r}; there are {', '.join(map(repr, able.values()))}")


def _rate(sounddevice: Any, index: int, kind: str, wanted: int) -> int:
    """`wanted` where the device can do it, else its own."""
    check = sounddevice.check_input_settings if kind == "input" else sounddevice.check_output_settings
    try:
        check(index, 1, "int16", None, wanted)
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(index)["default_samplerate"])
    return wanted


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _say(output: Any, message: dict[str, Any]) -> None:
    _write(output, json.dumps(message).encode() + b"\n")


def _write(output: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[output.write(view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
