"""Transcripts as subtitles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Two line breaks end a cue, and `-->` is not for its text (W3C WebVTT, 4.1).
_ARROW = ("-->", "->")


def srt(segments: Sequence[dict[str, Any]]) -> str:
    """SubRip: `{"start", "end", "text"}` each, in seconds."""
    cues = [
        f"{number}\n{_clock(item['start'], ',')} --> {_clock(item['end'], ',')}\n{_line(item['text'])}\n"
        for number, item in enumerate(segments, 1)
    ]
    return "\n".join(cues)


def vtt(segments: Sequence[dict[str, Any]]) -> str:
    """WebVTT, likewise."""
    cues = [
        f"{_clock(item['start'], '.')} --> {_clock(item['end'], '.')}\n{_escaped(_line(item['text']))}\n"
        for item in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _line(text: str) -> str:
    return " ".join(text.split()).replace(*_ARROW)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
