"""What was read before is not read again, and that changes nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest

from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.kv_cache import KVCache, Span
from edge_runtime.engine.onnx.prefix import Lru, Saved, common, content_digest
from edge_runtime.engine.onnx.seats import Seats
from edge_runtime.engine.onnx.shelf import Shelf
from edge_runtime.engine.protocol import Request
from edge_runtime.export import export_checkpoint
from tests.engine import runs
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

LIMIT = 1e-3
SYSTEM = {"role": "system", "content": "You are the guide of a small museum. " * 12}


@pytest.fixture
def fresh(fp32_bundle: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(fp32_bundle, threads=1, context=2048)
    yield engine
    engine.close()


def say(*words: str, **rest: Any) -> Request:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(words)]
    return Request(messages=[SYSTEM, *messages], **rest)


def logits_and_start(engine: OnnxEngine, request: Request) -> tuple[NDArray[np.float32], int]:
    prepared = engine.prepare(request)
    with engine._sit(prepared) as seat:
        steps = engine._prefill(prepared, seat)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value[-1].copy(), seat.start


def same_as_fresh(engine: OnnxEngine, request: Request) -> int:
    """Tokens that were not read again; the logits are those of an engine that has read nothing before."""
    found, start = logits_and_start(engine, request)
    before = engine._seats
    engine._seats = Seats([engine._decoder.another()], Lru(0))
    expected, nothing = logits_and_start(engine, request)
    engine._seats = before
    assert nothing == 0
    assert np.abs(found - expected).max() < LIMIT
    return start


def test_a_conversation_goes_on_where_it_was(fresh: OnnxEngine):
    words = ["What time does the museum open? " * 8]
    for _ in range(4):
        pieces = list(fresh.run(say(*words, max_tokens=12)))
        words += ["".join(piece.text for piece in pieces) or "Yes.", "And what about the café? " * 6]
        prompt = len(fresh.prepare(say(*words[:-2])).prompt.ids)
        assert same_as_fresh(fresh, say(*words)) >= prompt - 20


def test_another_question_after_the_same_system_turn(fresh: OnnxEngine):
    list(fresh.run(say("Is it far? " * 60, max_tokens=2)))
    end = fresh.prepare(say("x")).ready.system_end
    assert end > 64
    assert same_as_fresh(fresh, say("How long does it take? " * 60)) >= end - 20
    usage = list(fresh.run(say("Hello", max_tokens=1)))[-1].usage
    assert usage is not None
    assert usage["cached_tokens"] >= end - 20


def test_two_conversations_take_turns(fresh: OnnxEngine):
    first, second = "Tell me about the old ship. " * 40, "How do I get to the tower? " * 40
    for words in (first, second):
        list(fresh.run(Request(messages=[{"role": "user", "content": words}], max_tokens=2)))
    for words in (first, second, first):
        request = Request(messages=[{"role": "user", "content": words + "Please."}])
        assert same_as_fresh(fresh, request) > 200


def test_where_two_prompts_part_is_learned(fresh: OnnxEngine):
    """Far before the end of what was read, beyond any window: read again once, and then never."""
    shared = "The museum is open from nine to five. " * 40
    starts = []
    for ending in ("Is it open at four? " * 90, "Is it open on Monday? " * 90, "Who built it? " * 40):
        request = Request(messages=[{"role": "user", "content": shared + ending}])
        starts.append(same_as_fresh(fresh, request))
    assert starts[0] == starts[1] == 0
    assert starts[2] > 250


def test_pictures_are_known_by_what_they_show(fresh: OnnxEngine, monkeypatch: Any):
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 255, (240, 240, 3), np.uint8)) for _ in range(2)]
    encoded: list[Any] = []
    real = fresh._encoders._encode

    def counted(item: Any) -> Any:
        encoded.append(item)
        return real(item)

    monkeypatch.setattr(fresh._encoders, "_encode", counted)

    def ask(picture: PIL.Image.Image, words: str) -> Request:
        content = [{"type": "image", "image": picture.copy()}, {"type": "text", "text": words}]
        return Request(messages=[SYSTEM, {"role": "user", "content": content}], image_tokens=140)

    ends = [span.start + span.count for span in fresh.prepare(ask(pictures[0], "x")).prompt.spans]
    logits_and_start(fresh, ask(pictures[0], "What is it?"))
    assert len(encoded) == 1
    assert same_as_fresh(fresh, ask(pictures[0], "What colour is it?")) >= ends[0]
    assert same_as_fresh(fresh, ask(pictures[1], "What colour is it?")) < ends[0]
    assert len(encoded) == 2  # the fresh ones took theirs from what is kept, too
    logits_and_start(fresh, ask(pictures[0], "What is it?"))
    assert len(encoded) == 2


def test_cancelling_leaves_what_was_read(fresh: OnnxEngine):
    long = say("What time does the museum open? " * 60)
    prepared = fresh.prepare(long)
    steps = fresh.prefill(prepared)
    next(steps)
    next(steps)
    steps.close()
    assert same_as_fresh(fresh, long) > 0


@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_and_histories(tmp_path: Path, monkeypatch: Any, seed: int, kv_type: Any):
    """Windows smaller than prompts, small chunks, prompts that part anywhere, one or two sequences."""
    monkeypatch.setattr("edge_runtime.engine.onnx.seats.WORTH", 4)
    rng = random.Random(seed)
    changes: dict[str, Any] = {"sliding_window": rng.choice([4, 6, 12]), "num_kv_shared_layers": rng.choice([0, 2, 4])}
    write_checkpoint(tmp_path / "model", **changes)
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    manifest = read_manifest(tmp_path / "bundle")
    decoder = Decoder(tmp_path / "bundle", manifest, context=200, threads=1, chunk=8, kv_type=kv_type)
    plain, seats = decoder.another(), Seats([decoder, decoder.another()][: 1 + seed % 2], Lru(1 << 18))
    known: list[NDArray[np.int64]] = [np.array([], np.int64)]
    reused = 0
    for _ in range(25):
        base = rng.choice(known)
        head = base[: rng.randint(0, len(base))]
        ids = np.concatenate([head, np.array([rng.randrange(96) for _ in range(rng.randint(1, 90))])])[-190:]
        with seats.take(ids, (), rng.choice([0, len(head)])) as seat:
            at = seat.start
            reused += at
            while at < len(ids):
                end = min([at + rng.randint(1, 8), len(ids), *[stop for stop in seat.stops if stop > at]])
                found = seat.step(ids[at:end], ids[at:end], decoder.embed(ids[at:end]))
                if end in seat.stops:
                    seats.save(seat)
                at = end
            found = found[-1].copy()
            seats.mark(seat)
            grown = [rng.randrange(96) for _ in range(rng.randint(0, 8))]
            for token in grown:
                one = np.array([token])
                seat.step(one, one, decoder.embed(one))
        plain.begin()
        for first, end in plain.cuts(len(ids), 8):
            expected = plain.step(ids[first:end], plain.embed(ids[first:end]))
        assert np.abs(found - expected[-1]).max() < (LIMIT if kv_type == "fp32" else 0.05)
        known.append(np.concatenate([ids, np.array(grown, np.int64)])[:190])
    assert reused > 100
    decoder.close()


def test_reach_of_a_window():
    whole, later = Span(0, 30), Span(20, 30)
    assert [whole.reach(at, 5) for at in (0, 3, 30, 40)] == [0, 3, 30, 30]
    assert [later.reach(at, 5) for at in (30, 24, 23, 40)] == [30, 24, 0, 30]


def test_common_keys():
    a = np.array([1, 2, 3], np.int64)
    assert [common(a, np.array(b, np.int64)) for b in ([], [1], [1, 2, 3, 4], [2, 2], [1, 2, 4])] == [0, 1, 3, 0, 2]


def test_the_budget_is_kept_and_the_oldest_goes():
    kept = Lru(100)
    for name in "abc":
        kept.put(name, name, 40)
    assert [kept.get(name) for name in "abc"] == [None, "b", "c"]
    kept.get("b")
    kept.put("d", "d", 40)
    assert [kept.get(name) for name in "bcd"] == ["b", None, "d"]
    kept.put("e", "e", 101)
    assert kept.get("e") is None
    assert kept.used == 80
    kept.make_room(100)
    assert kept.used == 0


def state(engine: OnnxEngine, words: str = "Hello") -> Saved:
    cache: KVCache = engine._decoder.cache
    prepared = engine.prepare(say(words))
    runs.first_logits(engine, prepared)
    keys = prepared.ready.keys
    return Saved(keys, cache.keep_window(), cache.keep_full())


def shelf(engine: OnnxEngine, folder: Path, budget: int = 1 << 26) -> Shelf:
    layout = engine._decoder.cache.layout
    return Shelf(folder, "me", (len(layout.sliding), len(layout.full)), budget)


def test_states_survive_on_the_shelf(fresh: OnnxEngine, tmp_path: Path):
    saved, first = state(fresh), shelf(fresh, tmp_path)
    first.put(saved)
    first.close()
    longer = np.append(saved.keys, [1, 2])
    for there in (first, shelf(fresh, tmp_path)):
        found = there.find(longer, 64)
        assert found is not None
        assert content_digest(*found.full, *found.window.rows) == content_digest(*saved.full, *saved.window.rows)
        assert there.find(saved.keys[:-1], 1) is None
        assert there.find(longer, len(longer)) is None
    (path,) = tmp_path.glob("*.kv")
    assert path.stat().st_mode & 0o077 == 0
    other = Shelf(tmp_path, "another", (1, 1))
    assert other.find(longer, 1) is None
    assert path.exists()


@pytest.mark.parametrize("at", [5, 20_000, -1])
def test_a_damaged_state_is_thrown_away(fresh: OnnxEngine, tmp_path: Path, at: int):
    saved, first = state(fresh), shelf(fresh, tmp_path)
    first.put(saved)
    first.close()
    (path,) = tmp_path.glob("*.kv")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert at == 5 or first.find(saved.keys, 1) is None  # what its head says was known before
    assert shelf(fresh, tmp_path).find(saved.keys, 1) is None


def test_the_shelf_is_bounded(fresh: OnnxEngine, tmp_path: Path):
    states = [state(fresh, words) for words in ("One", "Two, three", "Four, five, six")]
    budget = 2 * (max(saved.nbytes for saved in states) + (1 << 14)) + 100
    there = shelf(fresh, tmp_path, budget)
    for saved in states:
        there.put(saved)
        there.close()
    assert len(list(tmp_path.glob("*.kv"))) == 2
    assert there.find(states[2].keys, 1) is not None


def test_the_first_answer_after_a_start_does_not_read_the_system_turn(fp32_bundle: Path, tmp_path: Path):
    cached = []
    for question in ("Is it far?", "Who are you? Tell me more."):
        engine = OnnxEngine(fp32_bundle, threads=1, context=1024, cache=tmp_path)
        usage = list(engine.run(say(question, max_tokens=1)))[-1].usage
        assert usage is not None
        cached.append(usage["cached_tokens"])
        engine.close()
    assert cached[0] == 0
    assert cached[1] > 64
