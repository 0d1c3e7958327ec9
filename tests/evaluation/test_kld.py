"""The comparison of two models, on bundles of a tiny model with the built-in one's tokenizer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edge_runtime.builtin import checkpoint_path
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.cli.main import main
from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.exchanges import Exchange, read_exchanges
from edge_runtime.evaluation.kld import BundleSource, Size, count_weights, kld
from edge_runtime.evaluation.saved import SavedSource, save
from edge_runtime.export import export_checkpoint
from tests.export import reference, tiny

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint "tiny", its bundles "fp32" and "int4", and prompts, some with a picture, which it does not take."""
    folder = tmp_path_factory.mktemp("kld")
    source = folder / "tiny"
    tiny.write_checkpoint(source, vocab_size=2048, vocab_size_per_layer_input=2048, eos_token_id=[1, 6])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint_path() / name, source / name)
    for recipe in ("fp32", "int4"):
        export_checkpoint(source, folder / recipe, recipe=recipe)
    cases: dict[str, dict[str, object]] = {
        "text": {"messages": HELLO, "answer": "It is ten past four."},
        "vision": {"image": "a.png", "question": "Which color?", "answer": "Red."},
    }
    for kind, case in cases.items():
        (folder / "prompts" / kind).mkdir(parents=True)
        (folder / "prompts" / kind / "a.png").write_bytes(b"x")
        lines = [json.dumps({**case, "group": group}) + "\n" for group in "aab"]
        (folder / "prompts" / kind / "cases.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def prompts(folder):
    return read_exchanges(folder / "prompts")


@pytest.fixture
def typed(prompts):
    return next(exchange for exchange in prompts if exchange.modality == "text")


class Fixed:
    """A model that knows its answers by heart."""

    def __init__(self, name, *logits, modalities=("text",)):
        self.name, self.modalities, self._logits = name, modalities, iter(np.array(part, np.float32) for part in logits)

    def logits(self, exchange):
        return next(self._logits)


def _asked(modality):
    return Exchange(modality, HELLO, [], {"role": "assistant", "content": "Hi"}, f"{modality}:1")


def test_modalities_are_counted_apart_and_together():
    asked = [_asked("image"), _asked("text"), _asked("image")]
    kinds = ("image", "text")
    right = Fixed("right", [[0, 0]], [[0, 0], [0, 0]], [[0, 9]])
    found = Fixed("found", [[0, np.log(3)]], [[0, 0], [5, 5]], [[0, 9]], modalities=kinds)
    seen = []
    report = kld(right, found, asked, lambda *counts: seen.append(counts))
    assert list(report.modalities) == ["text", "image"]
    assert report.modalities["image"].kl == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0])
    assert report.modalities["text"].kl.tolist() == [0, 0]
    assert (report.exchanges, report.overall.tokens) == (3, 4)
    assert report.overall.mean == pytest.approx(report.modalities["image"].kl.sum() / 4)
    assert report.to_dict()["kld"]["overall"]["tokens"] == 4
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_models_that_cannot_be_compared():
    with pytest.raises(EdgeRuntimeError, match="do not match: their answers are 1 tokens of 2 and 1 tokens of 3"):
        kld(Fixed("a", [[0, 0]]), Fixed("b", [[0, 0, 0]]), [_asked("text")])
    with pytest.raises(EdgeRuntimeError, match="text:1: b gives logits that are no numbers"):
        kld(Fixed("a", [[0, 0]]), Fixed("b", [[0, np.nan]]), [_asked("text")])
    with pytest.raises(EdgeRuntimeError, match="no prompt that b takes"):
        kld(Fixed("a"), Fixed("b"), [_asked("audio")])


def test_a_bundle_is_nothing_from_itself_and_something_from_four_bits(folder, prompts, typed):
    with BundleSource(folder / "fp32") as exact, BundleSource(folder / "int4") as rounded:
        same, lost = kld(exact, exact, prompts), kld(exact, rounded, prompts)
        logits = exact.logits(typed)
    assert (same.overall.kl.max(), same.overall.top1) == (0, 1)
    assert lost.overall.mean > 1e-4
    # "It is ten past four." and the end of the turn, three times; the pictures are left out.
    assert list(lost.modalities) == ["text"]
    assert (lost.exchanges, lost.overall.tokens) == (3, 3 * len(logits))
    assert logits.shape[1] == 2048


def test_forced_logits_are_those_of_the_plain_formula(folder, typed):
    request = Request(messages=typed.messages, max_tokens=1)
    with BundleSource(folder / "fp32") as exact:
        found = exact.logits(typed)
        prompt = exact._engine.prepare(request).prompt.ids
        ids = np.array([*prompt, *exact._engine.forcing.answer_ids(request, typed.answer)])
    tensors = tiny.decoder_tensors(exact.manifest.geometry)
    config = json.loads((folder / "tiny" / "config.json").read_text())
    assert np.abs(found - reference.forward(tensors, config, ids)[len(prompt) - 1 : -1]).max() < 1e-3


def test_a_saved_reference_gives_the_same_figures(folder, prompts, tmp_path):
    path = tmp_path / "reference"
    with BundleSource(folder / "fp32") as exact, BundleSource(folder / "int4") as rounded:
        save(path, exact, prompts, 123)
        live = kld(exact, rounded, prompts)
        with SavedSource(path) as saved:
            kept = kld(saved, rounded, prompts)
            assert (saved.name, saved.weights, saved.modalities) == ("tiny fp32", 123, ["text"])
    assert kept.overall.kl.tolist() == live.overall.kl.tolist()
    assert [entry.name for entry in tmp_path.iterdir()] == ["reference"]


def test_files_that_are_no_reference_for_these_prompts(folder, prompts, tmp_path):
    path = tmp_path / "reference"
    with BundleSource(folder / "fp32") as exact:
        save(path, exact, prompts, 1)
    whole = path.read_bytes()
    for content, says in ((whole[:-1], "is cut short"), (b"{}\n", "no reference logits"), (b"", "no reference logits")):
        path.write_bytes(content)
        with pytest.raises(EdgeRuntimeError, match=says):
            SavedSource(path)
    path.write_bytes(whole)
    with SavedSource(path) as saved, pytest.raises(EdgeRuntimeError, match="text:1: not among the prompts of"):
        saved.logits(_asked("text"))
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        SavedSource(tmp_path / "nowhere")


def test_an_interrupted_save_leaves_what_was_there(prompts, tmp_path):
    path = tmp_path / "reference"
    path.write_text("old")
    with pytest.raises(StopIteration):
        save(path, Fixed("a", [[0.0, 1.0]]), prompts, 1)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_are_those_of_the_files(folder):
    manifest = read_manifest(folder / "int4")
    size = Size.of(manifest)
    on_disk = sum(path.stat().st_size for path in (folder / "int4").iterdir() if path.name != "bundle.json")
    assert size.total == on_disk
    assert 0 < size.text < size.total
    assert size.bits_per_weight(2 * size.text) == 4
    count = sum(array.size for array in tiny.decoder_tensors(manifest.geometry).values())
    # The checkpoint also has the keys and values of shared layers, which no bundle keeps; rows are padded.
    assert count_weights(read_manifest(folder / "fp32")) == pytest.approx(count, rel=0.05)


def _command(folder, *words):
    return main(["eval", "kld", *map(str, words), "--threads", "1", "--prompts", str(folder / "prompts")])


def test_command_prints_json(folder, capsys):
    assert _command(folder, folder / "int4", "--checkpoint", folder / "tiny", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["reference"], report["prompts"]) == ("int4", "tiny fp32", 3)
    assert report["kld"]["overall"]["mean"] > 1e-4
    assert report["kld"]["overall"] == report["kld"]["text"]
    assert report["bits_per_weight"] == pytest.approx(8 * report["text_bytes"] / report["text_weights"], abs=1e-4)


def test_command_prints_a_table(folder, capsys):
    assert _command(folder, folder / "fp32", "--checkpoint", folder / "tiny", "--limit", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tokens", "text", "overall", "fp32:"]
    assert lines[1].endswith("100.00%")
    assert "2 prompts in" in lines[-1]


def test_command_keeps_a_reference_and_uses_it(folder, tmp_path, capsys):
    path = tmp_path / "reference"
    assert _command(folder, "--checkpoint", folder / "tiny", "--save-reference", path) == 0
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
    assert _command(folder, folder / "int4", "--reference", path, "--json") == 0
    kept = json.loads(capsys.readouterr().out)
    assert _command(folder, folder / "int4", "--checkpoint", folder / "tiny", "--json") == 0
    live = json.loads(capsys.readouterr().out)
    assert {**kept, "seconds": 0} == {**live, "seconds": 0}


def test_command_says_in_one_line_what_is_wrong(folder, tmp_path, capsys):
    for given, says in (
        ((folder / "int4",), "is not the built-in model: give its --checkpoint"),
        ((tmp_path, "--checkpoint", folder / "tiny"), "is no bundle"),
        ((folder / "int4", "--checkpoint", tmp_path), "no Hugging Face checkpoint"),
        ((folder / "int4", "--reference", tmp_path / "no"), "No such file"),
        ((folder / "int4", "--reference", "a", "--save-reference", "b"), "takes the place of"),
        ((folder / "int4", "--prompts", tmp_path), "none of the sets"),
    ):
        words = given if "--prompts" in given else (*given, "--prompts", folder / "prompts")
        assert main(["eval", "kld", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error


def test_the_built_in_bundle_loses_next_to_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EDGE_RUNTIME_CACHE", str(tmp_path))
    assert main(["eval", "kld", "--limit", "1", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["kld"]) == ["text", "image", "audio", "overall"]
    assert report["kld"]["overall"]["mean"] < 5e-5
    assert report["kld"]["overall"]["top1"] > 0.99
    assert report["bits_per_weight"] < 6
