"""Images and sounds to soft tokens: preprocessing and the two tower graphs, opened when first needed."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edge_runtime import media
from edge_runtime.bundle import names
from edge_runtime.engine.onnx.opening import open_graph
from edge_runtime.engine.onnx.prefix import Lru, content_digest
from edge_runtime.engine.onnx.session import CPU, freeing, give_back
from edge_runtime.engine.onnx.streaming import AudioStream
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.audio import LogMel
from edge_runtime.gemma.image import PatchGrid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.packed import PackedGraphs
    from edge_runtime.gemma.chat import Media
    from edge_runtime.gemma.image import Patches

FRAME_TOKENS = 70
"""Soft tokens of a video's picture, where the bundle does not say."""


class Encoders:
    """The towers that a bundle has.

    `prepare` is quick and checks everything, so that a request is refused before anything is computed; `encode` runs.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int,
        checksums: Checksums | None = None,
        *,
        kept: Lru | None = None,
        packed: PackedGraphs | None = None,
        providers: Sequence[str] = CPU,
        image_limit: int | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            folder: The bundle.
            manifest: Its manifest.
            threads: To compute with.
            checksums: The bundle's; None: the files are not checked.
            kept: Where soft tokens stay for a while.
            packed: See `Decoder`.
            providers: See `session.available`.
            image_limit: Soft tokens of an image at most; None: any number.
        """
        self._folder, self._threads, self._checksums = folder, threads, checksums
        self._kept, self._packed, self._providers = kept or Lru(0), packed, providers
        self._image_limit = image_limit
        self._vision, self._audio = manifest.geometry.vision, manifest.geometry.audio
        self._sessions: dict[str, Any] = {}
        processor = _processor_config(folder)
        self._grid = PatchGrid.from_config(processor)
        self._frame_tokens = int((processor.get("video_processor") or {}).get("max_soft_tokens", FRAME_TOKENS))
        self.log_mel = LogMel.from_config(processor)

    @property
    def modalities(self) -> list[str]:
        """What the model takes."""
        return ["text", *(["image"] if self._vision else []), *(["audio"] if self._audio else [])]

    @property
    def max_audio_seconds(self) -> float:
        """The longest sound, 0 if there is no audio tower."""
        return self.log_mel.max_samples / self.log_mel.sampling_rate if self._audio else 0.0

    def frame_tokens(self, wanted: int | None = None) -> int:
        """Soft tokens of a video's picture at most.

        Raises:
            EdgeRuntimeError: The model takes no images.
        """
        if self._vision is None:
            raise EdgeRuntimeError("this model takes no video", "unsupported_media")
        return self._frame_tokens if wanted is None else self._grid.with_budget(wanted).budget

    def prepare(self, item: Media, image_tokens: int | None = None, video_tokens: int | None = None) -> Clip | Picture:
        """Loads and checks an image or a sound.

        Raises:
            EdgeRuntimeError: It cannot be read, is too long, or the model takes no such thing.
        """
        if item.kind != "audio":
            if self._vision is None:
                raise EdgeRuntimeError("this model takes no images", "unsupported_media")
            budget = self.frame_tokens(video_tokens) if item.kind == "video" else image_tokens
            grid = self._grid.with_budget(budget) if budget is not None else self._grid
            if self._image_limit is not None and grid.budget > self._image_limit:
                raise EdgeRuntimeError(
                    f"image_tokens is {grid.budget}; within the memory budget images have {self._image_limit} at most",
                    "too_large",
                )
            image = media.load_image(item.source)
            patches = grid.cut(media.resize(image, grid.target_size(*image.size)))
            if patches.positions.max() >= self._vision.position_table_size:
                size = f"{image.width} x {image.height}"
                raise EdgeRuntimeError(f"the image is {size} pixels: too thin to be read", "unsupported_media")
            return Picture(patches)
        if self._audio is None:
            raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
        samples = media.load_audio(item.source)
        return Clip(*self.log_mel.features(samples), soft_tokens=self.log_mel.soft_tokens(len(samples)))

    def encode(self, prepared: Clip | Picture | Heard) -> NDArray[np.float32]:
        """Soft tokens, float32 `[soft_tokens, hidden]`; those of a repeated image or sound are kept a while."""
        if isinstance(prepared, Heard):
            return prepared.features
        features: NDArray[np.float32] | None = self._kept.get(prepared.digest)
        if features is None:
            features = self._encode(prepared)
            give_back()  # a tower leaves holes as large as itself
            self._kept.put(prepared.digest, features, features.nbytes)
        return features

    def _encode(self, prepared: Clip | Picture) -> NDArray[np.float32]:
        if isinstance(prepared, Picture):
            tower, output = names.VISION, "image_features"
            inputs = {"pixel_values": prepared.patches.pixels, "pixel_position_ids": prepared.patches.positions}
        else:
            tower, output = names.AUDIO, "audio_features"
            inputs = {"input_features": prepared.features[None], "input_features_mask": prepared.mask[None]}
        session = self.open(tower)
        features: NDArray[np.float32] = session.run([output], inputs, freeing(session))[0]
        if len(features) != prepared.soft_tokens:
            raise EdgeRuntimeError(f"{len(features)} soft tokens came instead of {prepared.soft_tokens}", "internal")
        return features

    def listen(self, tokens: int = 12) -> AudioStream:
        """Begins to take a sound that is still going on; opens the audio tower.

        Args:
            tokens: See `AudioStream`. A multiple of 4 gives what the whole clip gives even where a rounded tower rounds
                activations too; else they differ by about as much as rounding itself makes them. At E2B's size a second
                of sound in runs of 12 takes as much work as within a long clip, in runs of 1 2.7 times that.

        Raises:
            EdgeRuntimeError: The model takes no audio, or its tower looks ahead.
        """
        if self._audio is None:
            raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
        if self._audio.context_right:
            raise EdgeRuntimeError("this model's audio tower looks ahead: it takes whole clips only")
        return AudioStream(self.open(names.AUDIO), self.log_mel, tokens)

    def open(self, tower: str) -> Any:
        """The session of `names.VISION` or `names.AUDIO`; calling it early spares the first request the wait.

        Raises:
            EdgeRuntimeError: The graph is missing or damaged.
        """
        if tower not in self._sessions:
            self._sessions[tower] = open_graph(
                self._folder, tower, self._threads, self._checksums, self._packed, providers=self._providers
            )
        return self._sessions[tower]

    def close(self) -> None:
        """Lets go of the sessions."""
        self._sessions.clear()


class Picture:
    """An image ready for its tower."""

    def __init__(self, patches: Patches) -> None:
        self.patches, self.soft_tokens = patches, patches.soft_tokens

    @cached_property
    def digest(self) -> bytes:
        """Says what it contains."""
        return content_digest(self.patches.pixels, self.patches.positions)


class Clip:
    """A sound ready for its tower: log-mel `[frames, mels]` and mask `[frames]`."""

    def __init__(self, features: NDArray[np.float32], mask: NDArray[np.bool_], *, soft_tokens: int) -> None:
        self.features, self.mask, self.soft_tokens = features, mask, soft_tokens

    @cached_property
    def digest(self) -> bytes:
        """Says what it contains."""
        return content_digest(self.features, self.mask)


class Heard:
    """A sound whose soft tokens are there: float32 `[soft_tokens, hidden]`."""

    def __init__(self, features: NDArray[np.float32], digest: bytes) -> None:
        self.features, self.soft_tokens, self.digest = features, len(features), digest


def _processor_config(folder: Path) -> dict[str, Any]:
    """processor_config.json; image settings may also stand alone in preprocessor_config.json."""
    found: dict[str, Any] = {}
    for name in (names.PREPROCESSOR_CONFIG, names.PROCESSOR_CONFIG):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise EdgeRuntimeError(f"{folder / name} cannot be read: {error}") from None
        found |= {"image_processor": data} if name == names.PREPROCESSOR_CONFIG else data
    return found
