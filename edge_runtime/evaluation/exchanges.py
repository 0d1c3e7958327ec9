"""The prompts of `eval kld`: the cases of an evaluation folder, each with the answer it expects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_runtime.engine.speech import transcribe_prompt
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.cases import FILE_NAME, KINDS, read_cases

if TYPE_CHECKING:
    from edge_runtime.evaluation.cases import Case, Kind

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True)
class Exchange:
    """A question and the answer after it.

    Attributes:
        modality: What the question is asked with.
        messages: Hugging Face's chat format, media as paths.
        tools: JSON schemas, maybe none.
        answer: An assistant message.
        where: The line of the file that it comes from, for messages.
    """

    modality: Modality
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    answer: dict[str, Any]
    where: str

    def digest(self) -> bytes:
        """16 bytes that tell this exchange from others: of its words and of the contents of its media."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.messages, self.tools, self.answer):
            _feed(digest, part)
        return digest.digest()


def read_exchanges(folder: Path, limit: int | None = None) -> list[Exchange]:
    """What can be forced of the sets wer, vision, tools and text that `folder` has.

    Cases that expect no call have no answer in words and are left out.

    Args:
        folder: Holds a folder for each set, with cases.jsonl and media.
        limit: At most so many cases of each group.

    Raises:
        EdgeRuntimeError: There is no set; a line is not as its set wants it.
    """
    if not folder.is_dir():
        raise EdgeRuntimeError(f"{folder}: no such folder")
    kinds = [kind for kind in KINDS if (folder / kind / FILE_NAME).is_file()]
    if not kinds:
        raise EdgeRuntimeError(f"{folder} has none of the sets {', '.join(KINDS)} (folders with {FILE_NAME})")
    return [
        _exchange(kind, case, f"{folder / kind / FILE_NAME}:{case.line}")
        for kind in kinds
        for case in read_cases(folder / kind, kind, limit)
        if kind != "tools" or case.fields["calls"]
    ]


def _exchange(kind: Kind, case: Case, where: str) -> Exchange:
    fields = case.fields
    tools = fields.get("tools") or []
    answer: dict[str, Any] = {"role": "assistant"}
    if kind == "tools":
        answer["tool_calls"] = [{"type": "function", "function": call} for call in fields["calls"]]
    else:
        answer["content"] = fields["text" if kind == "wer" else "answer"]
    if kind == "vision":
        items = [{"type": "image", "image": fields["image"]}, {"type": "text", "text": fields["question"]}]
        return Exchange("image", [{"role": "user", "content": items}], tools, answer, where)
    if "audio" in fields:
        items = [{"type": "audio", "audio": fields["audio"]}]
        if kind == "wer":
            items.append({"type": "text", "text": transcribe_prompt("English", None)})
        return Exchange("audio", [{"role": "user", "content": items}], tools, answer, where)
    return Exchange("text", fields["messages"], tools, answer, where)


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, Path):
        digest.update(b"file" + value.read_bytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list):
        digest.update(b"[%d" % len(value))
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode() + b"\0")
