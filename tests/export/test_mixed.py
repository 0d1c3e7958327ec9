from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from edge_runtime.export.matrix import Rounding
from edge_runtime.export.mixed import CHOICES, deal, role_weight
from edge_runtime.export.quant import Format, Grid
from edge_runtime.export.recipes import RECIPES
from tests.export.stored import rounded_matrices
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Noise:
    """A matrix of normal values, or with `spread` of ones that few bits hold badly."""

    def __init__(self, name: str, rows: int, *, spread: float = 0.0, native: Format | None = None) -> None:
        rng = np.random.default_rng(len(name))
        self.name, self.shape, self.native = name, (rows, 256), native
        self.values = rng.standard_normal(self.shape).astype(np.float32)
        self.rounding = Rounding()
        self.values *= np.exp(spread * rng.standard_normal(self.shape)).astype(np.float32)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.values[start:stop]

    def grid(self, start: int, stop: int) -> Grid:
        raise NotImplementedError


def size(matrices: list[Noise], formats: dict[str, Format]) -> int:
    return sum(matrix.shape[0] * formats[matrix.name].kernel_bytes(matrix.shape[1]) for matrix in matrices)


def test_every_budget_is_kept_and_used() -> None:
    matrices = [Noise(f"layers.{i}.mlp.{part}_proj", 40 + i) for i in range(6) for part in ("up", "down")]
    weights = sum(rows * width for rows, width in (matrix.shape for matrix in matrices))
    for bits in (2.5, 3.0, 4.2, 6.0):
        formats = deal(matrices, int(weights * bits / 8))
        assert 0.93 * weights * bits / 8 < size(matrices, formats) <= weights * bits / 8
    assert set(deal(matrices, 10 * weights).values()) == {CHOICES[-1]}
    assert set(deal(matrices, 0).values()) == {CHOICES[0]}


def test_bits_go_where_they_are_needed() -> None:
    same = [Noise("layers.0.self_attn.k_proj", 64), Noise("layers.0.mlp.up_proj", 64)]
    budget = 2 * 64 * 256 * 36 // 80
    formats = deal(same, budget)
    assert role_weight(same[0].name) > role_weight(same[1].name)
    assert [formats[matrix.name].bits for matrix in same] == [4, 2]
    rough, even = Noise("a.up_proj", 64, spread=1.0), Noise("b.up_proj", 64)
    formats = deal([even, rough], budget)
    assert formats[rough.name].bits > formats[even.name].bits


def test_matrices_on_a_grid_keep_it() -> None:
    own = Format(4, 32, "f16")
    formats = deal([Noise("a.up_proj", 64, native=own), Noise("b.up_proj", 64)], 0)
    assert formats == {"a.up_proj": own, "b.up_proj": CHOICES[0]}


@pytest.mark.parametrize("recipe", ["int4", "int8", "mobile"])
def test_recipe_is_what_the_bundle_holds_and_says(tmp_path: Path, recipe: str) -> None:
    write_checkpoint(tmp_path / "model", dtype="BF16", intermediate_size=512)
    report = export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "bundle")
    said = {name: form for form, held in manifest.formats[names.DECODER].items() for name in held}
    found = rounded_matrices(tmp_path / "bundle" / names.DECODER)
    assert said == {name: str(form) for name, (form, _) in found.items()}
    weights = sum(values.size for _, values in found.values())
    stored = sum(len(values) * form.row_bytes(values.shape[1]) for form, values in found.values())
    if recipe == "mobile":
        assert {form.bits for form, _ in found.values()} == {2, 4, 8}
        assert RECIPES["mobile"].mixed
        kept = sum(len(values) * form.kernel_bytes(values.shape[1]) for form, values in found.values())
        assert 3.5 < 8 * kept / weights <= RECIPES["mobile"].mixed
    else:
        assert set(said.values()) == {str(RECIPES[recipe].decoder.fitting(32)), str(RECIPES[recipe].decoder)}
    assert report.sizes[names.data_file(names.DECODER)] < stored + 120_000
    # The same again, byte for byte.
    export_checkpoint(tmp_path / "model", tmp_path / "again", recipe=recipe)
    assert (tmp_path / "again" / names.data_file(names.DECODER)).read_bytes() == (
        tmp_path / "bundle" / names.data_file(names.DECODER)
    ).read_bytes()


def test_the_head_may_have_bits_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", dtype="BF16")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", head_bits=8)
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.embedding.bits == 8
    bits = {name: form[0] for form, held in manifest.formats[names.DECODER].items() for name in held}
    assert {name for name, found in bits.items() if found == "8"} == {"model.embed_tokens.weight"}
    for recipe in ("mobile", "fp32"):
        with pytest.raises(EdgeRuntimeError, match=f"recipe {recipe} chooses its head's bits itself"):
            export_checkpoint(tmp_path / "model", tmp_path / "other", recipe=recipe, head_bits=8)
