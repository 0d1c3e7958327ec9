"""A damaged bundle: refused when it is loaded, or when the damage is first met; never answered from."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.media import SAMPLE_RATE

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = Request(
    messages=[{"role": "user", "content": "What time does the museum open?"}],
    max_tokens=4,
    sampling=Sampling(temperature=0.0),
)


@pytest.fixture(scope="module")
def sound(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge_runtime.export.pipeline import export_checkpoint

    bundle = tmp_path_factory.mktemp("sound") / "bundle"
    export_checkpoint(checkpoint, bundle)
    return bundle


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """The sound one again, its files shared until they are changed."""
    shutil.copytree(sound, tmp_path / "bundle", copy_function=os.link)
    return tmp_path / "bundle"


def change(path: Path, data: bytes | bytearray | None) -> None:
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    change(path, data)


def refusal(bundle: Path) -> str:
    with pytest.raises(EdgeRuntimeError) as caught:
        OnnxEngine(bundle, threads=1).close()
    return str(caught.value)


def answer(bundle: Path) -> str:
    engine = OnnxEngine(bundle, threads=1)
    try:
        return "".join(piece.text for piece in engine.run(QUESTION))
    finally:
        engine.close()


@pytest.mark.parametrize("how", ["by a byte", "by half", "empty", "missing", "longer"])
def test_files_of_another_length_are_refused_by_name(bundle: Path, how: str) -> None:
    for path in sorted(bundle.iterdir()):
        data = path.read_bytes()
        lengths = {"by a byte": len(data) - 1, "by half": len(data) // 2, "empty": 0, "longer": len(data) + 1}
        change(path, None if how == "missing" else (data + b" ")[: lengths[how]])
        if path.name == names.MANIFEST and how in {"by a byte", "longer"}:
            assert answer(bundle)  # white space at the end of the manifest says nothing
        else:
            assert path.name in refusal(bundle)
        change(path, data)
    assert answer(bundle)


def test_a_flipped_bit_is_refused_at_load_or_at_first_touch(bundle: Path) -> None:
    expected = answer(bundle)
    rng = np.random.default_rng(0)
    towers = {name for graph in (names.VISION, names.AUDIO) for name in (graph, names.data_file(graph))}
    lazy = towers | {names.DRAFTER, names.data_file(names.DRAFTER), *read_manifest(bundle).tables}
    for path in sorted(bundle.iterdir()):
        data = path.read_bytes()
        for _ in range(3):
            flip(path, rng)
            if path.name in lazy:
                try:
                    assert answer(bundle) == expected  # nothing that it needed was hit
                except EdgeRuntimeError as error:
                    assert path.name in str(error)  # noqa: PT017 - both are right
            else:
                assert path.name in refusal(bundle)
            change(path, data)


def test_damaged_rows_never_become_an_answer(bundle: Path) -> None:
    """Every page of a table is hit, so the first token that is looked up must say so."""
    for name in read_manifest(bundle).tables:
        data = (bundle / name).read_bytes()
        damaged = bytearray(data)
        for at in range(100, len(damaged), 4096):
            damaged[at] ^= 64
        change(bundle / name, damaged)
        with pytest.raises(EdgeRuntimeError, match=rf"{name}: row \d+ is damaged in bytes \d+ to \d+"):
            answer(bundle)
        change(bundle / name, data)


@pytest.mark.parametrize("graph", [names.VISION, names.AUDIO])
@pytest.mark.parametrize("which", ["graph", "weights"])
def test_a_damaged_tower_is_refused_when_it_is_first_needed(bundle: Path, graph: str, which: str) -> None:
    import PIL.Image

    name = graph if which == "graph" else names.data_file(graph)
    flip(bundle / name, np.random.default_rng(1))
    engine = OnnxEngine(bundle, threads=1)
    item: dict[str, object] = {"type": "image", "image": PIL.Image.new("RGB", (96, 96))}
    if graph == names.AUDIO:
        item = {"type": "audio", "audio": np.zeros(SAMPLE_RATE, np.float32)}
    request = Request(messages=[{"role": "user", "content": [item, {"type": "text", "text": "What?"}]}], max_tokens=2)
    with pytest.raises(EdgeRuntimeError, match=f"{name} is damaged in bytes"):
        list(engine.run(request))
    engine.close()
