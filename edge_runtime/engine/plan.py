"""How much memory a model takes, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.machine import readable


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of memory that a model takes while it answers.

    Attributes:
        weights: Matrices of the decoder.
        tables: What is read from the disk row by row: the system may drop it at any time, so it is no part of `total`.
        activations: The most that computing takes at a time, with the program itself.
        towers: Image and audio towers at work.
        kv: Keys and values of a full context.
        prefix_cache: Keys and values of earlier prompts.
        prefill: Matrices of the decoder once more, as prompts are read with; 0: there is no room for them, or no need.
        mapped: What of weights and towers is pages of a file: the system may drop them and read them again.
        loading: The most anonymous memory at a time while the model is loaded; gone when that is done.
        at_once: Whether decoder and tokenizer may be loaded side by side without taking more than `anonymous`.
    """

    weights: int
    tables: int
    activations: int
    towers: int
    kv: int
    prefix_cache: int
    prefill: int = 0
    mapped: int = 0
    loading: int = 0
    at_once: bool = False

    @property
    def total(self) -> int:
        """Bytes that must be free for it to run at full speed."""
        return self.weights + self.prefill + self.activations + self.towers + self.kv + self.prefix_cache

    @property
    def anonymous(self) -> int:
        """Bytes that the system cannot get back: no moment takes more of them."""
        return max(self.total - self.mapped, self.loading)

    def lines(self) -> list[str]:
        """The parts for people, the total last."""
        parts = ("weights", "prefill", "activations", "towers", "kv", "prefix_cache")
        sizes = {name: getattr(self, name) for name in parts if name != "prefill" or self.prefill}
        said = [f"{name.replace('_', ' ')}: {readable(size)}" for name, size in sizes.items()]
        if self.tables:
            said.append(f"tables, read row by row: {readable(self.tables)}")
        said.append(f"together: {readable(self.total)}")
        if self.mapped:
            said.append(f"of that anonymous: {readable(self.anonymous)}; the rest the system may drop and read again")
        return said
