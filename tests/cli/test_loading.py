from __future__ import annotations

import pytest

from edge_runtime.cli._bar import Bar
from edge_runtime.cli._loading import load_model
from edge_runtime.errors import EdgeRuntimeError
from tests.cli.test_bar import Terminal
from tests.engine.llama.conftest import gemma3  # noqa: F401 - a fixture


class Hurrying:
    """A clock by which every look at it takes three seconds."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 3.0
        return self.now


@pytest.mark.gguf
def test_a_gguf_file_that_loads_for_long_shows_a_bar_and_leaves_no_trace_of_it(gemma3) -> None:  # noqa: F811
    stream = Terminal()
    load_model(str(gemma3), Bar(stream, Hurrying()), threads=1).close()
    pictures = stream.getvalue().split("\r\033[K")
    assert len(pictures) > 2
    assert all(picture.startswith("[") and "% of the model loaded" in picture for picture in pictures[1:-1])
    assert pictures[-1] == ""


def test_a_model_that_cannot_be_loaded_leaves_no_bar(tmp_path) -> None:
    stream = Terminal()
    with pytest.raises(EdgeRuntimeError, match="no such"):
        load_model(str(tmp_path / "none.gguf"), Bar(stream, Hurrying()))
    assert stream.getvalue() == ""
