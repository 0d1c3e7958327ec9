"""What of the settings can change while the daemon runs, and what must wait for a restart."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from edge_runtime.settings import Settings

# Sections that can change, and single keys of others; of the sections, the keys that cannot.
SECTIONS = frozenset({"limits", "pressure", "log"})
KEYS = {"model": ("describe_prompt", "vision_tools")}
FIXED = {"limits": ("payload_bytes",)}  # told to the broker and to the HTTP server when they begin


def merge(now: Settings, wanted: Settings, sections: Collection[str] = ()) -> tuple[Settings, list[str], list[str]]:
    """Takes over what can change.

    Args:
        now: The settings in force.
        wanted: Those of the file.
        sections: Sections that can change beside those that always can.

    Returns:
        The settings that are in force then; the keys that have changed; those that want a restart.
    """
    changed: list[str] = []
    waiting: list[str] = []
    parts: dict[str, Any] = {}
    for section in (field.name for field in dataclasses.fields(now)):
        old, new = getattr(now, section), getattr(wanted, section)
        if isinstance(old, tuple):
            live = section in sections
            if old != new:
                (changed if live else waiting).append(section)
            parts[section] = new if live else old
            continue
        taken: dict[str, Any] = {}
        for key in (field.name for field in dataclasses.fields(old)):
            value = getattr(new, key)
            if value == getattr(old, key):
                continue
            live = (section in SECTIONS or section in sections) and key not in FIXED.get(section, ())
            if live or key in KEYS.get(section, ()):
                taken[key] = value
            (changed if key in taken else waiting).append(f"{section}.{key}")
        parts[section] = dataclasses.replace(old, **taken)
    return dataclasses.replace(now, **parts), changed, waiting
