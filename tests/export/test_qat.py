from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.bundle.shared_table import SharedTable
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from edge_runtime.export.data import DataFile
from edge_runtime.export.grids import Packed
from edge_runtime.export.matrix import Stacked, Stored
from edge_runtime.export.parallel import Pace
from edge_runtime.export.qat import Products, Trained, adopt_grids, q4_0, regrid
from edge_runtime.export.quant import Format, Grid, dequantize, quantize, settle
from edge_runtime.export.safetensors import Checkpoint
from tests.export.stored import rounded_matrices
from tests.export.tiny import CONFIG, write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
KNOWN = {"quantization_config": PACKED}

ONE_KEY_HEAD = {"num_key_value_heads": 1}
"""The order of query heads is that of the checkpoint then; with several, whole heads move, here half a block each."""


def as_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def random_grid(rows: int, width: int, *, group: int = 32, seed: int = 0, lowest: int = -8, highest: int = 7) -> Grid:
    """Levels of every kind of block, scales as float16 has them, some blocks zero."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(lowest, highest + 1, (rows, width)).astype(np.int8)
    levels[0, :group] = 0
    levels[1, :group] = np.arange(group) % 2  # one level only
    steps = (rng.uniform(0.002, 0.03, (rows, width // group)) * rng.choice([-1, 1], (rows, width // group))).astype(
        "f2"
    )
    return Grid(levels, steps.astype(np.float32))


def pack(levels: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """compressed-tensors' layout, value by value."""
    rows, width = levels.shape
    words = np.zeros((rows, -(-width * bits // 32)), np.uint32)
    for k in range(width):
        words[:, k * bits // 32] |= (levels[:, k].astype(np.int64) + (1 << (bits - 1))).astype(np.uint32) << np.uint32(
            k * bits % 32
        )
    return words.view(np.int32)


def opened(
    folder: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any], *, dtype: str = "BF16"
) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    checkpoint = Checkpoint(folder)
    adopt_grids(checkpoint, config, folder.name)
    return checkpoint


@pytest.mark.parametrize(("lowest", "highest"), [(-8, 7), (-7, 7), (-3, 2)])
def test_products_in_bfloat16_give_back_levels_and_scales(lowest: int, highest: int) -> None:
    grid = random_grid(300, 64, lowest=lowest, highest=highest)
    stored = as_bf16(grid.values())
    levels, steps, found = regrid(stored.reshape(-1, 32), "BF16")
    assert found.all()
    # As every value of the checkpoint follows from them, nothing better can be known.
    assert (as_bf16(levels * steps[:, None]) == stored.reshape(-1, 32)).all()
    assert (steps == steps.astype(np.float16)).mean() > 0.99
    if lowest == -8:
        same = np.abs(levels * np.sign(steps)[:, None]) == np.abs(grid.levels.reshape(-1, 32))
        assert same.all(-1).mean() > 0.99


def test_values_off_every_grid_are_not_found() -> None:
    values = as_bf16(np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32))
    assert not regrid(values, "BF16")[2].any()


def test_q4_0_by_hand() -> None:
    block = np.zeros((1, 32), np.float32)
    block[0, :4] = [-4.0, 4.0, 0.25, 0.24]
    levels, steps = q4_0(block)
    assert steps.tolist() == [0.5]
    # llama.cpp rounds half up.
    assert levels[0, :4].tolist() == [-8, 7, 1, 0]


def test_a_q4_0_checkpoint_is_known_by_its_values(tmp_path: Path) -> None:
    grid = random_grid(96, 128)
    other = np.random.default_rng(1).standard_normal((96, 128)).astype(np.float32)
    tensors = {"grid.weight": grid.values(), "free.weight": other, "norm.weight": other[0]}
    with opened(tmp_path / "model", tensors, {}) as checkpoint:
        matrix = Stored(checkpoint.get("grid.weight"))
        assert isinstance(matrix.tensor, Products)
        assert matrix.native == Format(4, 32, "f16")
        assert Stored(checkpoint.get("free.weight")).native is None
        rounded = settle(matrix.grid(10, 90), matrix.native)
        assert (as_bf16(dequantize(rounded)) == matrix.rows(10, 90)).all()
        assert rounded.lost == 0
        assert Stacked([matrix, Stored(checkpoint.get("free.weight"))]).native is None
        assert (
            Stacked([matrix, matrix]).grid(90, 100).values()
            == matrix.grid(0, 96).values()[[*range(90, 96), 0, 1, 2, 3]]
        ).all()


def test_scales_that_float16_does_not_hold_stay_float32(tmp_path: Path) -> None:
    grid = random_grid(64, 64)
    grid = Grid(grid.levels, grid.steps * np.float32(1.0001234))
    with opened(tmp_path / "model", {"grid.weight": grid.values()}, {}, dtype="F32") as checkpoint:
        matrix = Stored(checkpoint.get("grid.weight"))
        assert matrix.native == Format(4, 32, "f32")
        error = np.abs(dequantize(settle(matrix.grid(0, 64), matrix.native)) - grid.values())
        assert (error <= 1e-7 * np.abs(grid.values()).max()).all()


def test_scales_of_bfloat16_products_move_less_than_the_products_were_rounded(tmp_path: Path) -> None:
    grid = random_grid(64, 64)
    grid = Grid(grid.levels, grid.steps * np.float32(1.0003))  # between two of float16
    small = Grid(grid.levels, grid.steps * np.float32(1e-5))  # under what float16 holds to 11 bits
    with opened(tmp_path / "model", {"a.weight": grid.values(), "b.weight": small.values()}, {}) as checkpoint:
        matrix = Stored(checkpoint.get("a.weight"))
        assert matrix.native == Format(4, 32, "f16")
        found, stored = dequantize(settle(matrix.grid(0, 64), matrix.native)), matrix.rows(0, 64)
        assert (np.abs(found - stored) <= (2.0**-8 + 2.0**-11) * np.abs(found)).all()
        assert Stored(checkpoint.get("b.weight")).native == Format(4, 32, "f32")


def test_weights_before_rounding_are_known_by_name_and_rounded_by_their_own_rule(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((96, 128)).astype(np.float32)
    tensors = {"a.weight": values, "model.vision_tower.a.weight": values}
    with opened(tmp_path / "it-qat-q4_0-unquantized", tensors, {}) as checkpoint:
        assert Stored(checkpoint.get("model.vision_tower.a.weight")).native is None
        matrix = Stored(checkpoint.get("a.weight"))
        assert isinstance(matrix.tensor, Trained)
        levels, steps = q4_0(as_bf16(values).reshape(-1, 32))
        found = matrix.grid(0, 96)
        assert (found.levels.reshape(-1, 32) == levels).all()
        assert (found.steps.reshape(-1) == steps).all()
        assert matrix.native == Format(4, 32, "f16")


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64), (2, 64), (4, 256)])
def test_packed_integers_are_taken_over_exactly(tmp_path: Path, bits: int, group: int) -> None:
    top = 1 << (bits - 1)
    grid = random_grid(40, 256, group=group, lowest=-top, highest=top - 1)
    grid = Grid(grid.levels, as_bf16(grid.steps))
    tensors: dict[str, Any] = {
        "a.weight_packed": pack(grid.levels, bits),
        "a.weight_scale": grid.steps,
        "a.weight_shape": np.array([40, 256], np.int64),
        "b.weight": grid.values(),
    }
    with opened(tmp_path / "model", tensors, KNOWN) as checkpoint:
        tensor = checkpoint.get("a.weight", (40, 256))
        assert isinstance(tensor, Packed)
        assert sorted(checkpoint.names()) == ["a.weight", "b.weight"]
        assert tensor.native == Format(bits, min(group, 128), "f16")
        assert (tensor.read(3, 30) == grid.values()[3:30]).all()
        order = np.array([7, 1, 39, 0])
        matrix = Stored(tensor, order)
        data = DataFile(tmp_path / "data", Pace(2, 3000))
        places, error = data.rounded(matrix, tensor.native)
        data.finish()
        assert error.relative == 0
        assert places.packed.shape == (4, 256 // min(group, 128), min(group, 128) * bits // 8)
        assert (dequantize(settle(matrix.grid(0, 4), tensor.native)) == grid.values()[order]).all()


def test_experts_lie_on_their_grids(tmp_path: Path) -> None:
    grid = random_grid(96, 64)
    with opened(tmp_path / "model", {"experts.up": grid.values().reshape(3, 32, 64)}, {}) as checkpoint:
        flat = replace(checkpoint.get("experts.up", (3, 32, 64)), shape=(96, 64))
        second = Stored(flat, first=32, last=64)
        assert second.native == Format(4, 32, "f16")
        assert (as_bf16(second.grid(0, 32).values()) == as_bf16(grid.values())[32:64]).all()


def test_columns_that_move_in_whole_blocks_stay_on_the_grid(tmp_path: Path) -> None:
    grid = random_grid(32, 128)
    with opened(tmp_path / "model", {"a.weight": grid.values()}, {}) as checkpoint:
        tensor = checkpoint.get("a.weight")
        order = np.concatenate([np.arange(32, 64), np.arange(0, 32), np.arange(96, 128), np.arange(64, 96)])
        moved = Stored(tensor, column_order=order)
        assert moved.native == Format(4, 32, "f16")
        assert (as_bf16(moved.grid(0, 32).values()) == moved.rows(0, 32)).all()
        assert Stored(tensor, column_order=order[::-1]).native is None


def test_other_formats_are_refused_in_one_line(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "a.weight_packed": np.zeros((4, 12), np.int32),
        "a.weight_scale": np.zeros((4, 2), np.float32),
        "a.weight_shape": np.array([4, 64], np.int64),
    }
    cases = [
        ({"quant_method": "gptq"}, tensors, "gptq"),
        ({**PACKED, "format": "float-quantized"}, tensors, "float-quantized"),
        (PACKED, tensors, "2, 4 or 8 bits"),
        (PACKED, {**tensors, "a.weight_zero_point": np.zeros((4, 2), np.float32)}, "zero points"),
    ]
    for number, (config, held, expected) in enumerate(cases):
        with pytest.raises(EdgeRuntimeError, match=expected) as caught:
            opened(tmp_path / str(number), held, json.loads(json.dumps({"quantization_config": config})))
        assert "\n" not in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_that_of_compressed_tensors(tmp_path: Path, bits: int) -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    grid = random_grid(40, 96, lowest=-(1 << (bits - 1)), highest=(1 << (bits - 1)) - 1)
    theirs = pack_to_int32(torch.from_numpy(grid.levels), bits).numpy()
    assert (theirs == pack(grid.levels, bits)).all()
    tensors = {
        "a.weight_packed": theirs,
        "a.weight_scale": as_bf16(grid.steps),
        "a.weight_shape": np.array(grid.levels.shape, np.int64),
    }
    with opened(tmp_path / "model", tensors, KNOWN) as checkpoint:
        assert (checkpoint.get("a.weight").read() == grid.levels * np.repeat(as_bf16(grid.steps), 32, 1)).all()


def test_scales_that_hold_a_grid_lose_nothing_and_others_do() -> None:
    grid = random_grid(64, 64)
    assert settle(grid, Format(4, 32, "f16")).lost == 0
    assert settle(grid, Format(4, 32, "i8")).lost > 0
    assert quantize(grid.values(), Format(4, 64, "f16")).lost > 0


def test_scales_of_a_trainer_that_stores_halfway_products_are_found() -> None:
    """d with 8 bits, as bfloat16 has: 3 * d lies halfway between two of bfloat16's numbers and goes to the even one."""
    rng = np.random.default_rng(3)
    steps = as_bf16(rng.uniform(0.01, 0.03, (500, 1)).astype(np.float32))
    levels = rng.integers(-8, 8, (500, 32))
    stored = as_bf16((levels * steps).astype(np.float32))
    found_levels, found_steps, found = regrid(stored, "BF16")
    assert found.all()
    assert (as_bf16(found_levels * found_steps[:, None]) == stored).all()


def linear_names(tensors: dict[str, Any]) -> list[str]:
    """The decoder's matrices but for its embeddings."""
    return [name for name in tensors if "_proj" in name and tensors[name].ndim == 2]


def packed(tensors: dict[str, Any]) -> dict[str, Grid]:
    """Puts compressed-tensors' parts in the place of matrices; the result is what they stand for."""
    grids = {}
    for number, name in enumerate(linear_names(tensors)):
        rows, width = tensors.pop(name).shape
        grid = random_grid(rows, width, seed=number)
        grids[name] = Grid(grid.levels, as_bf16(grid.steps))
        tensors |= {f"{name}_packed": pack(grid.levels, 4), f"{name}_scale": grids[name].steps}
        tensors[f"{name}_shape"] = np.array([rows, width], np.int64)
    return grids


def decoder_matrices(bundle: Path) -> dict[str, NDArray[np.float32]]:
    """The values of every matrix, those that lie in one stack apart."""
    apart: dict[str, NDArray[np.float32]] = {}
    for name, (_, values) in rounded_matrices(bundle / names.DECODER).items():
        parts = name.split("+")
        # Queries have four times as many rows as keys, and the last layer with keys of its own multiplies them apart.
        shares = [4, 1, 1][-len(parts) :]
        rows = [len(values) * share // sum(shares) for share in shares]
        apart |= dict(zip(parts, np.split(values, np.cumsum(rows)[:-1]), strict=True))
    return apart


@pytest.mark.parametrize("recipe", ["int4", "int8", "mobile"])
def test_w4a16_checkpoint_becomes_a_bundle_with_the_same_weights(tmp_path: Path, recipe: str) -> None:
    tensors = write_checkpoint(tmp_path / "model", dtype="BF16", **ONE_KEY_HEAD)
    grids = packed(tensors)
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors, "BF16")
    (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIG, **KNOWN, **ONE_KEY_HEAD}))
    report = export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    assert verify(tmp_path / "bundle") == []
    found = decoder_matrices(tmp_path / "bundle")
    compared = [name for name in found if name in grids]
    # Two layers share keys, and one matrix lies in the bundle as two.
    assert len(compared) == len(grids) - 2 * 2 - 1
    for name in compared:
        assert (np.sort(found[name].ravel()) == np.sort(grids[name].values().ravel())).all(), name
        if "mlp" in name:
            assert (found[name] == grids[name].values()).all(), name
    assert all(error.relative == 0 for error in report.errors if "mlp" in error.name)


@pytest.mark.parametrize("recipe", ["int4", "int8", "mobile"])
def test_q4_0_checkpoint_becomes_a_bundle_with_the_same_weights(tmp_path: Path, recipe: str) -> None:
    tensors = write_checkpoint(tmp_path / "model", dtype="BF16", **ONE_KEY_HEAD)
    for number, name in enumerate([*linear_names(tensors), "model.embed_tokens.weight"]):
        rows, width = tensors[name].shape
        tensors[name] = random_grid(rows, width, seed=number).values()
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors, "BF16")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    found = decoder_matrices(tmp_path / "bundle")
    for name in found:
        if "mlp" in name or "embed" in name:
            # The checkpoint's values follow from the bundle's.
            assert (as_bf16(found[name]) == as_bf16(tensors[name])).all(), name
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.embedding
    with SharedTable(tmp_path / "bundle", manifest.embedding) as table:
        read = table.read(np.arange(96)) / manifest.embedding.multiplier
    assert np.allclose(read, found["model.embed_tokens.weight"], rtol=1e-6)
    assert set(manifest.formats[names.DECODER]) >= {"4/32/f16"}
