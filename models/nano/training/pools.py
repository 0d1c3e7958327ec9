"""The training data in GPU memory, filled as the generators finish their shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from . import step, text
    from .data import GRIDS, Speech
except ImportError:  # run from inside the folder, as on a machine without the repository
    import step  # type: ignore[import-not-found, no-redef]
    import text  # type: ignore[import-not-found, no-redef]
    from data import GRIDS, Speech  # type: ignore[import-not-found, no-redef]


class SpeechPool:
    """Utterances: samples on the GPU, metadata here."""

    def __init__(self, pattern: str, folder: Path, capacity: int, device: torch.device) -> None:
        self._pattern, self._folder, self._seen, self._used = pattern, folder, set[str](), 0
        self.samples = torch.zeros(capacity, dtype=torch.int16, device=device)
        self.speech = Speech([], np.zeros(0, np.int64), np.zeros(0, np.int64))

    def load(self) -> bool:
        """Takes in finished shards; True when there were new ones."""
        fresh = [path for path in sorted(self._folder.glob(self._pattern)) if path.name not in self._seen]
        for path in fresh:
            samples = np.load(path.with_suffix(".npy"))
            self._seen.add(path.name)
            if self._used + len(samples) > len(self.samples):
                continue
            record = json.loads(path.read_text())
            offsets = np.array(record["offsets"], np.int64)
            self.samples[self._used : self._used + len(samples)] = torch.from_numpy(samples).to(self.samples.device)
            self.speech.utterances += [text.Utterance(**entry) for entry in record["utterances"]]
            self.speech.offsets = np.concatenate([self.speech.offsets, offsets[:-1] + self._used])
            self.speech.lengths = np.concatenate([self.speech.lengths, np.diff(offsets) - 1])
            self._used += len(samples)
        return bool(fresh)


class PicturePool:
    """Pictures with labels on the GPU; when full, new shards overwrite the oldest."""

    def __init__(self, folder: Path, capacity: int, device: torch.device) -> None:
        self._folder, self._seen, self._capacity, self._next = folder, set[str](), capacity, 0
        self.device = device
        self.questions: list[list[tuple[str, str, str]]] = []
        self.grids = np.zeros((0, 2), np.int64)
        self._data: dict[str, torch.Tensor] = {}
        self._positions = step.position_table().to(device)
        self._cells = step.cell_table().to(device)

    def load(self, *, remove: bool = False) -> bool:
        """Takes in finished shards; True when there were new ones. With `remove`, deletes their files."""
        fresh = [path for path in sorted(self._folder.glob("*.json")) if path.name not in self._seen]
        for path in fresh:
            self._seen.add(path.name)
            arrays = dict(np.load(path.with_suffix(".npz")))
            self._put(arrays, json.loads(path.read_text()))
            if remove:
                path.with_suffix(".npz").unlink()
        return bool(fresh)

    def _put(self, arrays: dict[str, Any], questions: list[list[tuple[str, str, str]]]) -> None:
        kinds = np.array([GRIDS.index((int(w), int(h))) for w, h in arrays["grid"]])
        labels = {name: arrays[name] for name in step.PATCH_LABELS}
        scalars = np.stack([arrays[name].astype(np.int64) for name in step.SCALAR_LABELS], 1)
        values = {
            "pixels": arrays["patches"],
            "kind": kinds,
            "patch": np.stack(list(labels.values()), -1),
            "soft": step.soft_labels(labels, kinds),
            "scalar": scalars,
        }
        count = len(kinds)
        if not self._data:
            for name, value in values.items():
                like = torch.from_numpy(value)
                shape = (self._capacity, *like.shape[1:])
                self._data[name] = torch.zeros(shape, dtype=like.dtype, device=self.device)
        start = self._next if self._next + count <= self._capacity else 0
        for name, value in values.items():
            self._data[name][start : start + count] = torch.from_numpy(value).to(self.device)
        if start + count > len(self.questions):
            missing = start + count - len(self.questions)
            self.questions += [[] for _ in range(missing)]
            self.grids = np.concatenate([self.grids, np.zeros((missing, 2), np.int64)])
        self.questions[start : start + count] = questions
        self.grids[start : start + count] = arrays["grid"]
        self._next = start + count

    def pictures(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pictures of a batch with their labels, and the tables their grids index."""
        at = indices.to(self.device)
        tables = {"positions": self._positions, "cells": self._cells}
        return {name: value[at] for name, value in self._data.items()} | tables
