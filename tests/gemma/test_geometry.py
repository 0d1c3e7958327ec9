from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.geometry import FULL, SLIDING, AssistantGeometry, Geometry
from edge_runtime.gemma.rope import head_order, rope_tables, table_pairs

E2B: dict[str, Any] = {
    "model_type": "gemma4",
    "eos_token_id": [1, 106],
    "text_config": {
        "vocab_size": 262144,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "layer_types": ([SLIDING] * 4 + [FULL]) * 7,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "attention_k_eq_v": False,
        "num_global_key_value_heads": None,
    },
    "vision_config": {"use_clipped_linears": True},
    "audio_config": {},
}


def changed(**changes: Any) -> dict[str, Any]:
    return E2B | {"text_config": E2B["text_config"] | changes}


def test_e2b() -> None:
    geometry = Geometry.from_config(E2B)
    text = geometry.text
    assert text.num_own_layers == 15
    assert text.num_shared_layers == 20
    assert text.kv_sources[:16] == (*range(15), 13)
    assert text.kv_sources[33:] == (13, 14)
    assert (text.last_own_layer(SLIDING), text.last_own_layer(FULL)) == (13, 14)
    assert text.head_dims[:5] == (256, 256, 256, 256, 512)
    assert set(text.kv_heads) == {1}
    assert text.mlp_widths == (6144,) * 15 + (12288,) * 20
    assert (text.rotated_pairs(SLIDING), text.rotated_pairs(FULL)) == (128, 64)
    assert geometry.eos == (1, 106)
    assert (geometry.image, geometry.audio_token, geometry.video) == (258880, 258881, 258884)
    assert (geometry.boi, geometry.eoi, geometry.boa, geometry.eoa) == (255999, 258882, 256000, 258883)
    assert geometry.vision
    assert geometry.vision.clipped
    assert geometry.audio
    assert geometry.audio.hidden_size == 1024


def test_both_spellings_of_per_layer_values_agree() -> None:
    config = changed(per_layer_config={str(i): {"head_dim": 512} for i in range(4, 35, 5)})
    del config["text_config"]["global_head_dim"]
    assert Geometry.from_config(config) == Geometry.from_config(E2B)


def test_global_kv_heads_count_only_with_k_eq_v() -> None:
    off = Geometry.from_config(changed(num_global_key_value_heads=2)).text
    on = Geometry.from_config(changed(num_global_key_value_heads=2, attention_k_eq_v=True)).text
    assert set(off.kv_heads) == {1}
    assert on.kv_heads[:5] == (1, 1, 1, 1, 2)


def test_experts_count_only_where_they_are_enabled() -> None:
    experts = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    off = Geometry.from_config(changed(**experts)).text
    on = Geometry.from_config(changed(**experts, enable_moe_block=True)).text
    assert (off.num_experts, off.experts_per_token, off.expert_width) == (0, 0, 0)
    assert (on.num_experts, on.experts_per_token, on.expert_width) == (128, 8, 704)


def test_images_are_bidirectional_only_in_a_model_that_sees() -> None:
    config = changed(use_bidirectional_attention="vision")
    assert Geometry.from_config(config).text.bidirectional_images
    assert not Geometry.from_config(config | {"vision_config": None}).text.bidirectional_images
    assert not Geometry.from_config({"model_type": "gemma4_text"} | config["text_config"]).text.bidirectional_images
    assert not Geometry.from_config(E2B).text.bidirectional_images


def test_json_round_trip() -> None:
    assistant = AssistantGeometry.from_config(
        {"model_type": "gemma4_assistant", "text_config": E2B["text_config"], "use_ordered_embeddings": True}
    )
    assert assistant.text.num_own_layers == 0
    assert set(assistant.text.kv_sources) == {-1}
    geometry = dataclasses.replace(Geometry.from_config(E2B), assistant=assistant)
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry
    text_only = Geometry.from_config({"model_type": "gemma4_text"} | E2B["text_config"])
    assert text_only.vision is None
    assert text_only.image is None
    assert Geometry.from_json(json.loads(json.dumps(text_only.to_json()))) == text_only


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"model_type": "gemma4_unified"}, "model_type is 'gemma4_unified'.*12B.*GGUF"),
        ({}, "model_type is None"),
        ({"model_type": "gemma4"}, "no text_config"),
        (changed(hidden_size=None), "hidden_size is None"),
        (changed(layer_types=[SLIDING]), "layer_types must name 35 layers"),
        (changed(layer_types=["chunked"] * 35), "layer_types"),
        (changed(num_kv_shared_layers=33), "no layer of type full_attention keeps keys"),
        (changed(enable_moe_block=True), "num_experts is None"),
        (changed(enable_moe_block=True, num_experts=4, top_k_experts=5), "top_k_experts is 5, there are 4"),
        (changed(use_bidirectional_attention="all"), "use_bidirectional_attention 'all'.*GGUF"),
        (changed(attention_bias=True), "attention_bias.*GGUF"),
        (E2B | {"tie_word_embeddings": False}, "tie_word_embeddings false.*GGUF"),
        (changed(num_key_value_heads=3), "cannot share"),
        (changed(hidden_activation="relu"), "hidden_activation"),
        (changed(per_layer_config={"4": {"head_dim": 512}}), "differs between"),
        (changed(per_layer_config={"4": {"intermediate_size": 5}}), "layer 4 sets intermediate_size"),
        (changed(rope_parameters={FULL: {"rope_type": "yarn", "rope_theta": 1.0}}), "'yarn'"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(EdgeRuntimeError, match=expected) as raised:
        Geometry.from_config(config)
    assert "\n" not in str(raised.value)


def test_damaged_geometry_is_refused() -> None:
    data = Geometry.from_config(E2B).to_json()
    for damage in ({}, data | {"text": None}, data | {"extra": 1}, {k: v for k, v in data.items() if k != "eos"}):
        with pytest.raises(EdgeRuntimeError, match="cannot be read"):
            Geometry.from_json(damage)


def test_rope_tables_of_e2b() -> None:
    text = Geometry.from_config(E2B).text
    tables = rope_tables(text, 100)
    assert tables["cos_sliding"].shape == (100, 128)
    assert tables["sin_full"].shape == (100, 64)
    assert tables["cos_full"].dtype == np.float32
    # The exponent of full layers runs over the whole head of 512.
    assert tables["sin_full"][7, 3] == pytest.approx(np.sin(7 * 1e6 ** (-6 / 512)), abs=1e-6)
    assert tables["cos_sliding"][99, 127] == pytest.approx(np.cos(99 * 1e4 ** (-254 / 256)), abs=1e-6)


def test_narrow_tables_are_filled_up_with_pairs_that_stand_still() -> None:
    text = Geometry.from_config(changed(global_head_dim=32)).text
    assert (text.rotated_pairs(FULL), table_pairs(text, FULL)) == (4, 8)
    tables = rope_tables(text, 10)
    assert (tables["cos_full"][:, 4:] == 1).all()
    assert (tables["sin_full"][:, 4:] == 0).all()


def test_head_order_puts_turning_pairs_first() -> None:
    order = head_order(16, 2)
    assert order[:4].tolist() == [0, 1, 8, 9]
    assert sorted(order) == list(range(16))
    assert head_order(16, 8).tolist() == list(range(16))
