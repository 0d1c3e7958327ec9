"""A session with what stays the same from step to step bound to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.session import freeing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.kv_cache import KVCache


class Bound:
    """A graph over the keys and values of one sequence.

    Attributes:
        inputs: Names of what the graph takes.
        binding: An `onnxruntime.IOBinding`.
        outputs_bound: How many outputs the caches are.
    """

    def __init__(
        self, session: Any, rotary: Mapping[str, Any], cache: KVCache, *, elsewhere: bool = False, arena: bool = False
    ) -> None:
        """Binds tables and caches.

        Args:
            session: An `onnxruntime.InferenceSession`.
            rotary: Tables of cosines and sines, `OrtValue`s by input name.
            cache: Keys and values, read and written in place.
            elsewhere: Whether it runs on another device, which takes a copy of caches when they are bound and gives one
                back after each run.
            arena: Whether the session has one.
        """
        import onnxruntime as ort  # noqa: PLC0415

        self._session, self._options = session, freeing(session) if arena else None
        self.binding = session.io_binding()
        self.inputs = {item.name for item in session.get_inputs()}
        self.outputs_bound = 0
        # Buffers and tables live as long as the binding: it holds their addresses.
        self._fixed: list[Any] = []
        self._travelling: list[tuple[str, Any]] = []
        for name, value in rotary.items():
            self._bind(name, value)
        outputs = [item.name for item in session.get_outputs()]
        for place, buffer in cache.buffers.items():
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._bind(names.past(*place), value)
            if elsewhere:
                self._travelling.append((names.past(*place), value))
            present = names.present(*place)
            for output in outputs:
                if output == present or output.startswith(names.given_back(present, "")):
                    self.binding.bind_ortvalue_output(output, value)
                    self.outputs_bound += 1

    def run(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Runs the graph; of `feed` it takes what it has inputs for."""
        for name, value in feed.items():
            if name in self.inputs:
                self.binding.bind_cpu_input(name, value)
        for name, value in self._travelling:
            self.binding.bind_ortvalue_input(name, value)
        self._session.run_with_iobinding(self.binding, self._options)

    def close(self) -> None:
        """Lets go of the session, the tables and the caches."""
        self._session = self.binding = None
        self._fixed.clear()
        self._travelling.clear()

    def _bind(self, name: str, value: Any) -> None:
        if name in self.inputs:
            self._fixed.append(value)
            self.binding.bind_ortvalue_input(name, value)
