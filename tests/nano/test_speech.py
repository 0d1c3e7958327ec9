"""Speech shards and held-out sets: with a stand-in for the synthesizers, and with the real ones where installed."""

from __future__ import annotations

import json
import random
import wave

import numpy as np
import pytest

from models.nano.training import heldout, speech, voices
from models.nano.training import text as tx
from models.nano.training.image_text import font_paths

COMMANDS = ("cmd", "digits")


class Hum:
    """A studio without synthesizers: each letter is 50 ms of a 200 Hz tone; the first utterance cannot be spoken."""

    def __init__(self, *_):
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def speak(self, name, utterances, seed):
        self.asked.append((name, seed))
        for i, utterance in enumerate(utterances):
            time = np.arange(800 * len(utterance.spoken)) / 16000
            tone = (20000 * np.sin(2 * np.pi * 200 * time)).astype(np.int16)
            yield "too short" if i == 0 else (f"hum:{name}", tone)


def test_held_out_voices_are_not_in_the_training_mix():
    r = random.Random(0)
    heard = {voices.pick("train", r)[0] for _ in range(3000)}
    assert {"flite:slt", "flite:awb", "flite:kal16", "pico:en-GB", "hibari:heart", "espeak:f2"} <= heard
    kept = {voices.pick(name, r)[0] for name in voices.HELDOUT for _ in range(100)}
    assert len(kept) == len(voices.ESPEAK_HELDOUT) + 3
    assert not heard & kept
    assert sum(share for share, _ in voices.TRAINING.values()) == pytest.approx(1)


def test_skipped_engines_are_left_out_of_the_mix():
    r = random.Random(0)
    skip = frozenset(voices.TRAINING) - {"slt", "pico"}
    assert {voices.pick("seen", r, skip)[0] for _ in range(50)} == {"flite:slt", "pico:en-GB"}


def test_trim_sets_the_peak_and_keeps_a_little_rest():
    quiet = np.zeros(32000, np.float32)
    quiet[10000:20000] = 0.01
    out = voices.trim(quiet)
    assert out is not None
    assert out.dtype == np.int16
    assert abs(out).max() == 20000
    assert len(out) == 10000 + 1600 + 3200 - 1
    assert voices.trim(np.zeros(100, np.float32)) is None
    assert voices.trim(np.zeros(0, np.float32)) is None


def test_letters_of_the_clock_are_not_read_as_an_article():
    assert voices.spoken_form("wake me at nine a m tomorrow") == "wake me at nine a.m. tomorrow"
    assert voices.spoken_form("alarm at ten p m") == "alarm at ten p.m."
    assert voices.spoken_form("open a map") == "open a map"


def test_say_tries_other_voices_and_then_says_why(monkeypatch):
    tried = []

    def broken(_name, _r, _skip):
        tried.append(1)
        return "a:b", lambda *_: (_ for _ in ()).throw(OSError("no voice data"))

    monkeypatch.setattr(voices, "pick", broken)
    assert voices.say("train", "hello there", "1") == "a:b: no voice data"
    assert len(tried) == 3


def test_say_refuses_speech_too_fast_for_the_frames(monkeypatch):
    second = np.ones(16000, np.float32)
    monkeypatch.setattr(voices, "pick", lambda *_: ("a:b", lambda *_: second))
    assert isinstance(voices.say("train", "x" * 60, "1"), str)
    spoken = voices.say("train", "hello there", "1")
    assert not isinstance(spoken, str)
    assert spoken[0] == "a:b"


def test_shard_holds_what_was_spoken_and_is_not_made_twice(tmp_path, monkeypatch):
    draw = tx.corpus
    monkeypatch.setattr(tx, "corpus", lambda *a, **k: draw(*a, **{**k, "kinds": COMMANDS}))
    studio = Hum()
    line = speech.make_shard(studio, tmp_path, "train", 7, 20, 0)
    assert "train007: 19 utterances" in line
    assert "1 left out (too short)" in line
    shard = speech.read_shard(tmp_path / "train007.json")
    assert shard.samples.dtype == np.int16
    assert set(shard.voices) == {"hum:train"}
    assert len(shard.utterances) == 19
    assert not any(tx.is_heldout(utterance.spoken) for utterance in shard.utterances)
    for i, utterance in enumerate(shard.utterances):
        assert len(shard.wave(i)) == 800 * len(utterance.spoken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train007.json", "train007.npy"]
    assert "already there" in speech.make_shard(studio, tmp_path, "train", 7, 20, 0)
    assert len(studio.asked) == 1


def test_sets_other_than_train_use_held_out_sentences(tmp_path, monkeypatch):
    draw = tx.corpus
    monkeypatch.setattr(tx, "corpus", lambda *a, **k: draw(*a, **{**k, "kinds": COMMANDS}))
    speech.make_shard(Hum(), tmp_path, "rms", 0, 10, 0)
    assert all(tx.is_heldout(u.spoken) for u in speech.read_shard(tmp_path / "rms000.json").utterances)


def test_a_missing_engine_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(voices, "missing", lambda name: {"joe": f"{name}: not here"} if name == "joe" else {})
    assert speech.main([str(tmp_path), "--set", "joe"]) == 2
    assert capsys.readouterr().err == "speech: cannot speak 'joe': joe: not here\n"
    assert heldout.main([str(tmp_path), "--sets", "wer"]) == 2
    assert capsys.readouterr().err == "heldout: cannot speak joe: joe: not here\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The spoken and typed sets, five cases a group, hummed."""
    monkeypatch.setattr(heldout, "Studio", Hum)
    monkeypatch.setattr(voices, "missing", lambda _: {})
    assert heldout.main([str(tmp_path), "--seed", "4", "--per-group", "5", "--sets", "wer", "tools", "text"]) == 0
    return tmp_path


def _cases(folder, group=None):
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [case for case in map(json.loads, lines) if group in {None, case["group"]}]


def test_heldout_speech_has_every_group_and_real_wav_files(made):
    groups = [case["group"] for case in _cases(made / "wer")]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(
        ["seen", "seen_20db", "seen_10db", "espeak", "rms", "pico_us", "joe"], 5
    )
    with wave.open(str(made / "wer" / _cases(made / "wer")[0]["audio"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)


def test_noise_has_the_level_that_the_group_names(made):
    def samples(group):
        with wave.open(str(made / "wer" / _cases(made / "wer", group)[0]["audio"])) as file:
            return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(float)[3200:-3200]

    clean = samples("seen")
    for group, decibel in (("seen_20db", 20), ("seen_10db", 10)):
        noise = samples(group) - clean
        assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(decibel, abs=0.5)


def test_heldout_tools_declare_the_tool_that_is_wanted(made):
    cases = _cases(made / "tools")
    assert {case["group"] for case in cases} == {"typed", "typed_no_tool", "spoken_seen", "spoken_rms", "spoken_joe"}
    for case in cases:
        declared = {tool["function"]["name"] for tool in case["tools"]}
        assert 1 <= len(declared) <= 4
        assert {call["name"] for call in case["calls"]} <= declared
        assert (case["group"] == "typed_no_tool") == (not case["calls"])


def test_heldout_text_has_every_group_and_what_it_cannot_know(made):
    groups = {case["group"] for case in _cases(made / "text")}
    assert groups == {"faq", "math", "unknown", "fact", "fact_missing", "tool_result"}
    assert {case["answer"] for case in _cases(made / "text", "unknown")} == {"I do not know that."}
    result = _cases(made / "text", "tool_result")[0]
    assert [message["role"] for message in result["messages"]] == ["user", "assistant", "tool"]
    assert result["tools"]


def test_heldout_sets_come_back_the_same_from_the_same_seed(made, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    heldout.main([str(again), "--seed", "4", "--per-group", "5", "--sets", "wer", "tools", "text"])
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert all((made / name).read_bytes() == (again / name).read_bytes() for name in files)
    heldout.main([str(again), "--seed", "5", "--per-group", "5", "--sets", "text"])
    assert _cases(made / "text") != _cases(again / "text")


def test_evaluation_accepts_the_sets(made):
    from edge_runtime.evaluation.cases import read_cases

    assert len(read_cases(made / "wer", "wer")) == 35
    assert len(read_cases(made / "tools", "tools")) == 25
    assert read_cases(made / "text", "text")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", *voices.HELDOUT])
def test_installed_engines_speak(name):
    absent = voices.missing(name)
    if absent:
        pytest.skip("; ".join(absent.values()))
    spoken = [voices.say(name, "turn on the kitchen light", str(seed)) for seed in range(12)]
    lengths = [len(result[1]) / voices.RATE for result in spoken if not isinstance(result, str)]
    assert len(lengths) >= 10
    assert 0.8 < np.median(lengths) < 4


def test_heldout_pictures_have_every_kind_of_question(tmp_path):
    try:
        font_paths()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert heldout.main([str(tmp_path), "--per-group", "1", "--sets", "vision", "--processes", "1"]) == 0
    cases = _cases(tmp_path / "vision")
    assert {"count", "color", "word", "digits", "dial", "door"} <= {case["group"] for case in cases}
    for case in cases:
        assert (tmp_path / "vision" / case["image"]).read_bytes().startswith(b"\x89PNG")
        assert case["question"]
        assert case["answer"]
