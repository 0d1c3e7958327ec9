"""The training form of the architecture against transformers, and the training text against the chat template."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from edge_runtime.builtin import checkpoint_path
from edge_runtime.gemma.chat import ChatTemplate, check_chat
from edge_runtime.gemma.tokenizer import Tokenizer
from models.nano.training import dialog, text

KINDS = ("cmd", "faq", "math", "unknown", "general", "salad", "digits")


def _examples(count):
    r = random.Random(3)
    pool = text.corpus(3, 800, kinds=KINDS)
    answered = [utterance for utterance in pool if utterance.answer]
    return [dialog.text_example(r, pool, answered) for _ in range(count)]


def test_heldout_sentences_are_never_in_training():
    training = {utterance.spoken for utterance in text.corpus(1, 20000, kinds=KINDS)}
    heldout = text.corpus(2, 500, heldout=True, kinds=KINDS)
    assert not training & {utterance.spoken for utterance in heldout}


def test_corpus_is_reproducible():
    assert text.corpus(5, 100, kinds=KINDS) == text.corpus(5, 100, kinds=KINDS)


def test_spoken_forms_have_letters_only():
    for utterance in text.corpus(6, 2000, kinds=KINDS):
        assert set(utterance.spoken) <= set("abcdefghijklmnopqrstuvwxyz '"), utterance.spoken


def test_examples_read_as_the_chat_template_renders_them():
    folder = checkpoint_path()
    template = ChatTemplate((folder / "chat_template.jinja").read_text(), Tokenizer.from_folder(folder))
    for example in _examples(150):
        tools = [dialog.tool_schema(name) for name in example.tools] or None
        rendered = template.render(check_chat(list(example.messages), tools), think=example.think)
        assert rendered == example.prompt


@pytest.mark.oracle
def test_training_form_equals_transformers():
    import torch
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ForConditionalGeneration

    from models.nano.training import frontend, model, step

    checkpoint = checkpoint_path()
    reference = Gemma4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    weights = {name: value.float() for name, value in reference.state_dict().items()}
    shape = model.Shape.from_config(json.loads((checkpoint / "config.json").read_text()))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mel = torch.randn(2, 203, 128, generator=g)
        mask = torch.ones(2, 203, dtype=torch.bool)
        mask[1, 150:] = False
        mel *= mask[..., None]
        want = reference.model.audio_tower(mel, mask, return_dict=True).last_hidden_state
        got, valid = model.audio_forward(weights, shape, mel, mask)
        assert float((want - got)[valid].abs().max()) < 1e-4
        pixels = torch.rand(2, 576, 768, generator=g)
        positions, cells = step.position_table()[:2], step.cell_table()[:2]
        want = reference.model.vision_tower(
            pixel_values=pixels, pixel_position_ids=positions, return_dict=True
        ).last_hidden_state
        pooled = model.pool(model.vision_forward(weights, shape, pixels, positions), cells)
        assert float((torch.cat([pooled[0], pooled[1, :63]]) - want).abs().max()) < 1e-3
        ids = torch.randint(30, 2000, (2, 200), generator=g)
        hidden, _ = model.text_forward(weights, shape, model.embed(weights, shape, ids), ids)
        want = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert float((model.logits(weights, shape, hidden) - want).abs().max()) < 1e-3
    samples = (np.random.default_rng(0).standard_normal(20123) * 0.1).astype(np.float32)
    want = Gemma4AudioFeatureExtractor()([samples], return_tensors="np")
    count = int(want["input_features_mask"][0].sum())
    waves = torch.from_numpy(np.pad(samples, (0, -len(samples) % 640)))[None]
    got, mask = frontend.log_mel(waves, torch.tensor([len(samples)]))
    assert int(mask.sum()) == count
    assert np.abs(want["input_features"][0][:count] - got[0, :count].numpy()).max() < 1e-4


@pytest.mark.oracle
def test_exporter_takes_over_what_the_trainer_rounds():
    import torch

    from edge_runtime.export.qat import regrid
    from models.nano.training import optimizer

    weights = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    rounded = optimizer.round_to_int4(torch.from_numpy(weights).reshape(-1)).reshape(16, 256).numpy()
    levels, steps, found = regrid(rounded.reshape(-1, 32), "F32")
    assert found.all()
    assert np.abs((levels * steps[:, None]).reshape(weights.shape) - rounded).max() < 1e-6
