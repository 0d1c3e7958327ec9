"""Conversations: what was said before in a session, bounded in number, turns, bytes, tokens and time.

In memory alone, since nothing is kept for longer than it is needed: a restart forgets them. Words only: pictures and
recordings of earlier turns are not shown to the model again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.settings import LimitsSettings

# The share of the context that history may take: the rest is for the question and its answer.
HISTORY_SHARE = 0.5
# In the place of a question that had no words.
MEDIA_ONLY = {"audio": "(a recording)", "image": "(a picture)"}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: The user's words.
        answer: The model's.
        tokens: What it adds to the prompt, about.
        seen: Whether the question was about a picture: its words may come from there.
    """

    question: str
    answer: str
    tokens: int
    seen: bool

    @property
    def size(self) -> int:
        """Bytes of text."""
        return len(self.question.encode()) + len(self.answer.encode())

    def messages(self) -> list[dict[str, Any]]:
        """As chat messages."""
        return [_text("user", self.question), _text("assistant", self.answer)]


@dataclass(slots=True)
class Conversation:
    """What is remembered of one session."""

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None
    used: float = 0.0


class Sessions:
    """All conversations. One thread recalls and remembers; any may make it forget."""

    def __init__(self, limits: LimitsSettings, context: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._tokens = int(context * HISTORY_SHARE)
        self._clock = clock
        self._conversations: OrderedDict[tuple[str, str], Conversation] = OrderedDict()
        self._lock = threading.Lock()

    def limit(self, limits: LimitsSettings) -> None:
        """Other limits from now on."""
        self._limits = limits

    def __len__(self) -> int:
        return len(self._conversations)

    def recall(self, client: str, name: str) -> Conversation:
        """The conversation `name` of a client; a new one if it is not remembered."""
        with self._lock:
            self._forget_old()
            return self._conversations.get((client, name)) or Conversation()

    def remember(self, client: str, name: str, conversation: Conversation) -> None:
        """Keeps a conversation, cut to what is allowed, as the one used last."""
        limits, turns = self._limits, conversation.turns[-self._limits.session_turns :]
        while turns and (
            sum(turn.size for turn in turns) > limits.session_bytes or sum(turn.tokens for turn in turns) > self._tokens
        ):
            turns = turns[1:]
        conversation.turns = turns
        conversation.used = self._clock()
        with self._lock:
            self._conversations[client, name] = conversation
            self._conversations.move_to_end((client, name))
            self._forget_old()

    def forget(self, client: str, name: str) -> None:
        """Drops the conversation `name` of a client, if there is one."""
        with self._lock:
            self._conversations.pop((client, name), None)

    def _forget_old(self) -> None:
        """Drops what was unused for too long, and what is too much; the longest unused stand first."""
        oldest = self._clock() - self._limits.session_idle_s
        while self._conversations and (
            len(self._conversations) > self._limits.sessions or next(iter(self._conversations.values())).used < oldest
        ):
            self._conversations.popitem(last=False)


def compose(conversation: Conversation, messages: list[dict[str, Any]], *, tools: bool) -> list[dict[str, Any]]:
    """A request's messages with the conversation before them.

    Args:
        conversation: What was said; its system message stands where the request has none.
        messages: The request's own.
        tools: Whether it offers tools: then turns about pictures are left out, whose words could call them.
    """
    own_system = messages[:-1]
    system = own_system or ([_text("system", conversation.system)] if conversation.system else [])
    turns = [turn for turn in conversation.turns if not (tools and turn.seen)]
    return [*system, *(message for turn in turns for message in turn.messages()), messages[-1]]


def turn_of(message: dict[str, Any], answer: str, tokens: int) -> Turn:
    """The turn that a user message and its answer make."""
    kinds = {item["type"] for item in message["content"]}
    words = " ".join(item["text"] for item in message["content"] if item["type"] == "text")
    question = words or " ".join(MEDIA_ONLY[kind] for kind in sorted(kinds))
    return Turn(question, answer, tokens, seen="image" in kinds)


def _text(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
