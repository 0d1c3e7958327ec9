"""The engine on the built-in checkpoint: what holds whatever the weights are."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

import edge_runtime
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.session import open_session
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from tests.engine import runs

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.engine.protocol import Piece

LONG = "What time does the museum open? " * 100


def ask(content: Any, **rest: Any) -> Request:
    return Request(messages=[{"role": "user", "content": content}], **rest)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_pieces_and_the_last_one(engine: OnnxEngine):
    pieces = list(engine.run(ask("What time does the museum open?", max_tokens=8)))
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    last = pieces[-1]
    assert last.finish_reason in {"stop", "length"}
    assert last.usage is not None
    assert last.usage["prompt_tokens"] > 5
    assert 1 <= last.usage["completion_tokens"] <= 8
    assert last.timing is not None
    assert set(last.timing) == {"load_s", "first_token_s", "decode_tokens_per_s"}
    assert (last.tool_calls, last.thoughts) == ([], "")


def test_asking_again_gives_the_same(engine: OnnxEngine):
    first = text(list(engine.run(ask("Hello", max_tokens=8))))
    list(engine.run(ask(LONG, max_tokens=2)))
    assert text(list(engine.run(ask("Hello", max_tokens=8)))) == first


def test_sampling_repeats_with_its_seed(engine: OnnxEngine):
    def answer(seed: int) -> str:
        sampling = Sampling(temperature=3.0, top_k=200, top_p=1.0, seed=seed)
        return text(list(engine.run(ask("Hello", max_tokens=16, sampling=sampling))))

    assert answer(5) == answer(5)
    assert len({answer(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(("spin_us", "expected"), [(None, ("1", "50")), (7, ("1", "7")), (0, ("0", ""))])
def test_how_long_threads_wait_for_work(fp32_bundle: Path, spin_us: int | None, expected: tuple[str, str]):
    model = OnnxEngine(fp32_bundle, threads=2, spin_us=spin_us)
    options = model._decoder._core.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == expected[0]
    if spin_us != 0:
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == expected[1]
    model.close()


def test_chunks_of_any_size_give_the_same_logits(fp32_bundle: Path, engine: OnnxEngine):
    prepared = engine.prepare(ask(LONG))
    assert len(prepared.prompt.ids) > 2 * 256 + 128
    expected = runs.first_logits(engine, prepared)
    other = OnnxEngine(fp32_bundle, threads=1)
    other._decoder.chunk = 37
    assert np.abs(runs.first_logits(other, other.prepare(ask(LONG))) - expected).max() < 1e-3
    other.close()


def test_decoding_past_window_and_chunk_equals_prefill(engine: OnnxEngine):
    """Each token of a long answer is the one that reading prompt and answer so far would give."""
    prepared = engine.prepare(Request(raw="<|turn>user\nHello<turn|>\n<|turn>model\n"))
    ids = list(prepared.prompt.ids)
    decoder = engine._decoder
    runs.first_logits(engine, prepared)
    rng = np.random.default_rng(1)
    for _ in range(500):  # any tokens will do; the window of 128 moves several times
        ids.append(int(rng.integers(300, 2000)))
        token = np.array(ids[-1:], np.int64)
        logits = decoder.step(token, decoder.embed(token))[-1].copy()
    decoder.cache.reset()
    for start in range(0, len(ids), decoder.chunk):
        part = np.array(ids[start : start + decoder.chunk], np.int64)
        expected = decoder.step(part, decoder.embed(part))[-1]
    assert np.abs(logits - expected).max() < 1e-3


def test_several_kept_positions(engine: OnnxEngine):
    decoder = engine._decoder
    ids = np.array(engine.prepare(ask(LONG)).prompt.ids[:400], np.int64)
    decoder.cache.reset()
    for start in (0, 200):
        part = ids[start : start + 200]
        many = decoder.step(part, decoder.embed(part), keep=5).copy()
    for offset in range(5):
        decoder.cache.reset()
        for start in (0, 200):
            part = ids[start : min(start + 200, 396 + offset)]
            one = decoder.step(part, decoder.embed(part))
        assert np.abs(many[offset] - one[0]).max() < 1e-3


def test_the_token_limit_and_stop_strings(engine: OnnxEngine):
    request = Request(raw="<|turn>user\nWhat time does the museum open?<turn|>\n<|turn>model\n", max_tokens=3)
    last = list(engine.run(request))[-1]
    assert last.usage is not None
    assert (last.finish_reason, last.usage["completion_tokens"]) == ("length", 3)
    whole = text(list(engine.run(ask("What time does the museum open?"))))
    stop = whole[3:6]
    assert text(list(engine.run(ask("What time does the museum open?", stop=[stop])))) == whole[: whole.find(stop)]


def test_the_context_is_never_exceeded(fp32_bundle: Path):
    engine = OnnxEngine(fp32_bundle, threads=1, context=40)
    prepared = engine.prepare(Request(raw="the of " * 12))
    assert len(prepared.prompt.ids) < 40
    prepared.answer._ends = frozenset()
    ids = runs.greedy(engine, prepared)
    assert len(prepared.prompt.ids) + len(ids) == 40
    assert prepared.answer.finish()[1] == "length"
    engine.close()


def test_too_long_a_prompt_is_refused_before_running(engine: OnnxEngine):
    with pytest.raises(EdgeRuntimeError, match=r"prompt is \d+ tokens, the context is 4096: shorten") as error:
        engine.run(ask(LONG * 10))
    assert error.value.code == "too_large"


def test_cancelling_between_chunks_and_tokens(engine: OnnxEngine):
    for stop_after in (0, 2, 5):
        cancel = threading.Event()
        pieces = engine.run(ask(LONG, max_tokens=50, cancel=cancel))
        for _ in range(stop_after):
            next(pieces)
        cancel.set()
        with pytest.raises(EdgeRuntimeError) as error:
            list(pieces)
        assert error.value.code == "cancelled"
    assert list(engine.run(ask("Hello", max_tokens=2)))


def test_a_second_request_meanwhile_is_busy(engine: OnnxEngine):
    pieces = engine.run(ask("Hello"))
    next(pieces)
    with pytest.raises(EdgeRuntimeError) as error:
        next(engine.run(ask("Hello")))
    assert error.value.code == "busy"
    pieces.close()
    assert list(engine.run(ask("Hello", max_tokens=2)))


def wav(seconds: float) -> bytes:
    stream = io.BytesIO()
    samples = np.random.default_rng(1).normal(0, 0.05, int(seconds * 16_000))
    soundfile.write(stream, samples, 16_000, format="WAV")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([{"type": "image", "image": "/none.png"}], "/none.png: no such file"),
        ([{"type": "image", "image": b"hello"}], "not a JPEG, PNG or WebP image"),
        ([{"type": "audio", "audio": b""}], "the audio is empty"),
        ([{"type": "audio", "audio": b"RIFF"}], "not a WAV, FLAC, OGG or MP3"),
        ([{"type": "audio", "audio": wav(0)}], "holds no sound"),
        ([{"type": "audio", "audio": wav(0.005)}], "shorter than 20 ms"),
        ([{"type": "audio", "audio": wav(31)}], r"lasts 31\.0 s, the model takes 30 s at most"),
        ([{"type": "smell"}], "unknown type 'smell'"),
    ],
)
def test_bad_content_gives_one_line(engine: OnnxEngine, content, line):
    with pytest.raises(EdgeRuntimeError, match=line) as error:
        engine.run(ask(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"sampling": Sampling(temperature=-1)}, "temperature is -1"),
        ({"stop": [""]}, "stop must be"),
        ({"tools": [{}]}, "tool 1 has no function name"),
    ],
)
def test_bad_options_give_one_line(engine: OnnxEngine, options, line):
    with pytest.raises(EdgeRuntimeError, match=line):
        engine.run(ask("Hello", **options))


def test_bad_settings_of_load(fp32_bundle: Path):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"context": 1}, "context is 1"),
        ({"context": 10**7}, "this model takes 2 to"),
        ({"threads": 0}, "threads is 0"),
        ({"spin_us": -1}, "spin_us is -1"),
    ]
    for settings, line in wrong:
        with pytest.raises(EdgeRuntimeError, match=line):
            edge_runtime.load(fp32_bundle, **settings)


def test_a_graph_that_is_none_gives_one_line(tmp_path: Path):
    (tmp_path / "decoder_model_merged.onnx").write_bytes(b"nonsense")
    with pytest.raises(EdgeRuntimeError, match="the graph cannot be loaded") as error:
        open_session(tmp_path / "decoder_model_merged.onnx", 1)
    assert "\n" not in str(error.value)


def test_a_closed_model_says_so(fp32_bundle: Path):
    model = edge_runtime.load(fp32_bundle, threads=1)
    assert model.info["modalities"] == ["text", "image", "audio"]
    model.close()
    model.close()
    with pytest.raises(EdgeRuntimeError, match="the model is closed"):
        list(model.chat([{"role": "user", "content": "Hello"}]))
