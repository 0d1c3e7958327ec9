from __future__ import annotations

import pytest

from edge_runtime.engine.llama.load import Choices, find_abilities, find_parts
from edge_runtime.engine.llama.metadata import read_gguf
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.llama.heads import TURN, head

VALUES = {
    "general.architecture": "gemma4",
    "general.name": "Door",
    "gemma4.block_count": 2,
    "gemma4.embedding_length": 64,
    "tokenizer.ggml.tokens": ["a", *TURN, "\n", "<b>", "<|tool_call>"],
    "tokenizer.ggml.token_type": [1, 3, 3, 4, 4, 4],
    "tokenizer.ggml.merges": ["a b"],
}
TENSORS = [("x.weight", (64, 2), 2, 0), ("y.weight", (8,), 0, 96)]


def test_values_tensors_and_sizes_are_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(VALUES, TENSORS) + bytes(128))
    found = read_gguf(path)
    assert (found.architecture, found.name, found.get("block_count")) == ("gemma4", "Door", 2)
    assert [(t.name, t.kind, t.size) for t in found.tensors] == [("x.weight", "Q4_0", 72), ("y.weight", "F32", 32)]


def test_control_tokens_are_those_that_frame_and_no_others(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(VALUES))
    assert read_gguf(path).control_tokens() == [*TURN, "<|tool_call>"]


def test_a_cut_file_is_damaged_and_says_how_much_is_missing(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes((head(VALUES, TENSORS) + bytes(128))[:-1])
    with pytest.raises(EdgeRuntimeError, match="damaged: 1 of its"):
        read_gguf(path)


@pytest.mark.parametrize("cut", [5, 24, 40, 90, 300])
def test_a_head_cut_anywhere_is_damaged(tmp_path, cut):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(VALUES, TENSORS)[:cut])
    with pytest.raises(EdgeRuntimeError, match=r"x\.gguf is damaged"):
        read_gguf(path)


def test_counts_beyond_reason_are_damage(tmp_path):
    path = tmp_path / "x.gguf"
    data = bytearray(head(VALUES))
    data[8:16] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(EdgeRuntimeError, match="damaged"):
        read_gguf(path)


@pytest.mark.parametrize("content", [b"", b"RIFFxxxx", b"GG"])
def test_other_files_are_no_gguf(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(EdgeRuntimeError, match=r"is no GGUF file|is damaged"):
        read_gguf(path)


def test_the_parts_of_a_split_model_are_one(tmp_path):
    for number in (1, 2):
        values = VALUES | {"split.count": 2}
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(head(values, TENSORS[:number]) + bytes(128))
    assert len(read_gguf(tmp_path / "m-00001-of-00002.gguf").tensors) == 3
    with pytest.raises(EdgeRuntimeError, match="give its first file"):
        read_gguf(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


TOWERS = {
    "general.architecture": "clip",
    "clip.has_vision_encoder": True,
    "clip.has_audio_encoder": True,
    "clip.vision.projector_type": "gemma4v",
    "clip.vision.patch_size": 16,
    "clip.vision.projection_dim": 64,
}


def test_towers_and_drafter_beside_a_model_are_found_if_they_fit(tmp_path):
    model = tmp_path / "door-it.gguf"
    model.write_bytes(head(VALUES))
    (tmp_path / "mmproj-other.gguf").write_bytes(head(TOWERS | {"clip.vision.projection_dim": 128}))
    (tmp_path / "mmproj-door-f16.gguf").write_bytes(head(TOWERS))
    (tmp_path / "mmproj-door-bf16.gguf").write_bytes(head(TOWERS))
    assistant = {"general.architecture": "gemma4-assistant", "gemma4-assistant.embedding_length_out": 64}
    (tmp_path / "door-assistant.gguf").write_bytes(head(assistant))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    parts = find_parts(model)
    assert parts.projector.path.name == "mmproj-door-bf16.gguf"
    assert parts.drafter.path.name == "door-assistant.gguf"
    assert find_parts(model, Choices(alone=True)).projector is None
    abilities = find_abilities(parts.projector)
    assert (abilities.image, abilities.audio_s, abilities.grid.patch) == (True, 30.0, 16)


def test_a_model_without_ears_says_so(tmp_path):
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(head({key: value for key, value in TOWERS.items() if "audio" not in key}))
    assert find_abilities(read_gguf(path)).audio_s == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (TOWERS, "only the towers"),
        ({"general.architecture": "gemma4-assistant"}, "is a drafter"),
        ({"general.architecture": "diffusion-gemma", "diffusion-gemma.block_count": 3}, "cannot run diffusion models"),
        ({"general.architecture": "whatever"}, "no language model"),
    ],
)
def test_what_is_no_model_of_words_is_refused_in_one_line(tmp_path, values, says):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(values))
    with pytest.raises(EdgeRuntimeError, match=says):
        find_parts(path)
