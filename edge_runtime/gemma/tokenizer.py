"""Text to token ids and back: the checkpoint's own `tokenizer.json`, and Gemma 4's control tokens by name."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Wrapped around control tokens that stand in the user's own words, so that they stay words: `<turn|>` in a question
# does not end the turn. Private-use characters, removed from the input first.
MARK_START, MARK_END = "\ue0fe", "\ue0ff"

VIDEO = "<|video|>"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the tokens that structure prompts and answers; None where the tokenizer lacks one."""

    image: int | None
    boi: int | None
    eoi: int | None
    audio: int | None
    boa: int | None
    eoa: int | None
    channel_open: int | None
    channel_close: int | None
    call_open: int | None
    call_close: int | None
    response_open: int | None
    quote: int | None
    video: int | None = None


class Tokenizer:
    """The tokenizer of a bundle.

    Attributes:
        special_tokens: Named special tokens as the chat template sees them, such as `{"bos_token": "<bos>"}`.
    """

    def __init__(self, backend: Backend, config: dict[str, Any]) -> None:
        self._backend = backend
        named = {**config, **(config.get("model_specific_special_tokens") or {})}
        self.special_tokens = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in named.items()
            if key.endswith("_token") and isinstance(value, (str, dict))
        }
        self._special = {
            index: token.content for index, token in backend.get_added_tokens_decoder().items() if token.special
        }

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads `tokenizer.json` and `tokenizer_config.json`.

        Raises:
            EdgeRuntimeError: A file is missing or damaged.
        """
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            backend = Backend.from_buffer((folder / "tokenizer.json").read_bytes())
        except FileNotFoundError as error:
            raise EdgeRuntimeError(f"{folder} has no {error.filename.rsplit('/', 1)[-1]}") from None
        except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception on a damaged file
            raise EdgeRuntimeError(f"{folder}: the tokenizer cannot be read: {error}") from None
        video = config.get("video_token", VIDEO)
        if backend.token_to_id(video) is not None:
            # Known to the vocabulary, but not always declared as a control token: transformers' processor does it, too.
            backend.add_special_tokens([AddedToken(video, special=True, normalized=False)])
        with contextlib.suppress(AttributeError):
            # It remembers ten thousand texts, which for a model without word boundaries are whole sentences: 30 MB.
            backend.model._resize_cache(0)  # noqa: SLF001
        return cls(backend, config)

    @cached_property
    def control(self) -> ControlTokens:
        """Gemma 4's control tokens, by the names that `tokenizer_config.json` gives them."""

        def find(key: str, usual: str) -> int | None:
            found: int | None = self._backend.token_to_id(self.special_tokens.get(key, usual))
            return found

        return ControlTokens(
            image=find("image_token", "<|image|>"),
            boi=find("boi_token", "<|image>"),
            eoi=find("eoi_token", "<image|>"),
            audio=find("audio_token", "<|audio|>"),
            boa=find("boa_token", "<|audio>"),
            eoa=find("eoa_token", "<audio|>"),
            channel_open=find("soc_token", "<|channel>"),
            channel_close=find("eoc_token", "<channel|>"),
            call_open=find("stc_token", "<|tool_call>"),
            call_close=find("etc_token", "<tool_call|>"),
            response_open=find("str_token", "<|tool_response>"),
            quote=find("escape_token", '<|"|>'),
            video=find("video_token", VIDEO),
        )

    @cached_property
    def turn_open(self) -> int | None:
        """Id of the token that begins a turn; None if there is none."""
        found: int | None = self._backend.token_to_id(self.special_tokens.get("sot_token", "<|turn>"))
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; control tokens in it are recognised, no beginning-of-text is added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` as mere words: what looks like a control token in it is spelled out."""
        backend = self._backend
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        splits = [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for part in splits for token in backend.model.tokenize(part)]

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a rendered chat in which `mark` has wrapped the user's own control tokens."""
        if MARK_START not in text and MARK_END not in text:
            return self.encode(text)
        ids: list[int] = []
        # A template may have torn a pair of marks apart: the lone mark still parts the text on its two sides.
        for index, piece in enumerate(self._marked.split(text)):
            if piece:
                ids += self.encode_plain(piece) if index % 2 else self.encode(piece)
        return ids

    def mark(self, value: Any) -> Any:
        """`value` (str, list, dict, nested) with every control token in its strings wrapped in marks."""
        if isinstance(value, str):
            clean = value.replace(MARK_START, "").replace(MARK_END, "")
            return self._controls.sub(rf"{MARK_START}\g<0>{MARK_END}", clean)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def is_special(self, token: int) -> bool:
        """Whether `token` is a control token, which never shows in text."""
        return token in self._special

    @property
    def size(self) -> int:
        """Number of tokens, control tokens among them."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def token_text(self, token: int) -> str:
        """How the vocabulary writes a token; "" for an unknown id."""
        return str(self._backend.id_to_token(token) or "")

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token; a byte token gives its byte, a control token or an unknown id nothing."""
        text = self._backend.id_to_token(token)
        if text is None or token in self._special:
            return b""
        if byte := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace("▁", " ").encode("utf-8", "replace")

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        longest_first = sorted(self._special.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        return re.compile(f"{MARK_START}({self._controls.pattern}){MARK_END}|[{MARK_START}{MARK_END}]")


class Detokenizer:
    """Turns a stream of ids into text piece by piece; half a character is held back until its other bytes come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token; often the token's own, "" inside a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def reset(self) -> None:
        """Forgets the half character held back: what follows is another text."""
        self._decoder.reset()
