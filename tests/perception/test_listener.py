"""Blocks whose first sample says how likely they are speech: the state machine alone, to the block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.perception.endpointing import EndpointOptions, blocks
from edge_runtime.perception.listener import Listener
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    from numpy.typing import NDArray

YES, NO, WORD = 0.9, 0.0, 1.0
BLOCK_S = 0.032


class Scripted:
    """A detector that reads its answers from the blocks; as one of wake words it hears 1.0."""

    resets = 0

    def __call__(self, block: NDArray[np.float32]) -> float:
        return float(block[0])

    def reset(self) -> None:
        self.resets += 1


class ScriptedWord(Scripted):
    def __call__(self, block: NDArray[np.float32]) -> Any:
        return "hey you" if block[0] == WORD else None


class Door:
    closed = False


class Room:
    """A listener, and all that it was fed, numbered in the second sample."""

    def __init__(self, **options: Any) -> None:
        self.detector, self.door, self.count = Scripted(), Door(), 0
        options.setdefault("gate", self.door)
        self.listener = Listener("kitchen", self.detector, **options)
        self.begun: list[tuple[int, Utterance]] = []

    def hear(self, *probabilities: float) -> Room:
        for probability in probabilities:
            block = np.zeros(512, np.float32)
            block[:2] = probability, self.count
            if (utterance := self.listener.feed(block)) is not None:
                self.begun.append((self.count, utterance))
            self.count += 1
        return self

    def only(self) -> Utterance:
        ((_, utterance),) = self.begun
        return utterance


def numbers(utterance: Utterance) -> list[int]:
    """Which blocks it holds."""
    assert utterance.over.is_set()
    return [int(n) for n in utterance.sound().reshape(-1, 512)[:, 1]]


PAUSE = [NO] * blocks(0.7)


def test_an_utterance_has_a_pre_roll_and_not_the_pause_after_it():
    room = Room().hear(*[NO] * 50, *[YES] * 30, *PAUSE)
    utterance = room.only()
    assert (utterance.ended, utterance.aborted, utterance.trigger) == ("pause", None, "voice")
    heard = numbers(utterance)
    assert heard == list(range(heard[0], heard[-1] + 1))
    assert (50 - heard[0]) * BLOCK_S == pytest.approx(0.4, abs=0.1)
    assert (heard[-1] - 79) * BLOCK_S == pytest.approx(0.2, abs=0.033)


def test_it_is_handed_on_while_it_is_spoken():
    room = Room().hear(*[NO] * 50, *[YES] * 3)
    begun_with = room.only().samples
    assert begun_with > 0
    room.hear(YES)
    assert room.only().samples == begun_with + 512
    assert not room.only().over.is_set()


def test_a_pause_in_the_middle_belongs_to_it():
    utterance = Room().hear(*[NO] * 20, *[YES] * 10, *PAUSE[:-1], *[YES] * 10, *PAUSE).only()
    heard = numbers(utterance)
    assert heard == list(range(heard[0], heard[0] + len(heard)))
    assert heard[-1] >= 20 + 10 + len(PAUSE) - 1 + 10 - 1


def test_what_is_too_short_for_speech_is_dropped():
    utterance = Room().hear(*[NO] * 20, *[YES] * 4, *PAUSE).only()
    assert utterance.ended is None
    assert utterance.aborted == "too short for speech"


def test_one_follows_the_other():
    room = Room().hear(*([NO] * 20 + [YES] * 20 + PAUSE) * 3)
    assert [utterance.ended for _, utterance in room.begun] == ["pause"] * 3


def test_one_that_is_too_long_is_cut_and_goes_on_as_the_next():
    room = Room(options=EndpointOptions(max_s=3.0)).hear(*[YES] * 250, *PAUSE)
    assert [utterance.ended for _, utterance in room.begun] == ["limit", "limit", "pause"]
    together = [number for _, utterance in room.begun for number in numbers(utterance)]
    assert together[:250] == list(range(250)), "nothing is lost between them"


def test_a_cancelled_one_collects_no_more():
    room = Room().hear(*[YES] * 10)
    room.only().cancel()
    size = room.only().samples
    room.hear(*[YES] * 2)
    assert room.only().samples == size
    room.hear(*[YES] * 10)
    assert len(room.begun) == 2, "it listens again"


def test_when_the_sound_breaks_off_it_is_worthless():
    room = Room().hear(*[YES] * 10)
    room.listener.broke_off("microphone kitchen: unplugged")
    assert room.only().aborted == "microphone kitchen: unplugged"
    assert room.detector.resets == 1
    assert len(room.hear(*[YES] * 10).begun) == 2


class TestPushToTalk:
    def test_only_what_was_asked_for_is_recorded(self):
        room = Room(mode="push-to-talk").hear(*[YES] * 40)
        assert room.begun == []
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance)
        room.hear(*[YES] * 5, *[NO] * 100)
        room.listener.release()
        assert utterance.ended == "stopped"
        heard = numbers(utterance)
        assert heard[-1] == 40 + 105 - 1, "its pauses are its own affair"
        assert (40 - heard[0]) * BLOCK_S == pytest.approx(0.4, abs=0.033), "people press the button late"

    def test_so_many_seconds(self):
        room = Room(mode="push-to-talk").hear(*[NO] * 40)
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance, seconds=2.0)
        room.hear(*[NO] * 80)
        assert utterance.ended == "limit"
        assert utterance.seconds == pytest.approx(2.0, abs=BLOCK_S)

    def test_until_a_pause(self):
        room = Room(mode="push-to-talk")
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance, until_pause=True)
        room.hear(*[NO] * 60, *[YES] * 20, *PAUSE)
        assert utterance.ended == "pause"
        assert utterance.seconds < 2.0, "the silence before it is left out"

    def test_nobody_speaks(self):
        room = Room(mode="push-to-talk")
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance, until_pause=True)
        room.hear(*[NO] * blocks(5.1))
        assert utterance.aborted == "nobody spoke"

    def test_it_takes_the_place_of_what_goes_on(self):
        room = Room().hear(*[YES] * 10)
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance)
        assert room.only().aborted == "somebody pushed to talk"
        room.hear(*[YES] * 10)
        room.listener.release()
        assert utterance.ended == "stopped"

    def test_it_is_heard_through_our_own_voice(self):
        room = Room()
        room.door.closed = True
        utterance = Utterance("kitchen", "push")
        room.listener.push(utterance)
        room.hear(*[YES] * 10)
        room.listener.release()
        assert len(numbers(utterance)) == 10

    def test_to_let_go_of_nothing_does_nothing(self):
        room = Room().hear(*[YES] * 10)
        room.listener.release()
        assert not room.only().over.is_set()


class TestWakeWord:
    def room(self, **options: Any) -> Room:
        return Room(mode="wake-word", wake=ScriptedWord(), **options)

    def test_nothing_is_heard_before_it(self):
        assert self.room().hear(*[YES] * 100, *PAUSE).begun == []

    def test_half_a_second_before_it_and_all_that_follows(self):
        room = self.room().hear(*[NO] * 50, WORD, *[YES] * 40, *PAUSE)
        utterance = room.only()
        assert (utterance.trigger, utterance.wake_word, utterance.ended) == ("wake", "hey you", "pause")
        heard = numbers(utterance)
        assert heard == list(range(heard[0], heard[-1] + 1))
        assert (51 - heard[0]) * BLOCK_S == pytest.approx(0.5, abs=0.033)

    def test_the_end_of_the_word_itself_is_no_command(self):
        """It is recognised before it has quite been said; people then draw breath."""
        room = self.room().hear(*[NO] * 50, WORD, *[YES] * 15, *[NO] * 60, *[YES] * 30, *PAUSE)
        assert room.only().ended == "pause"
        assert numbers(room.only())[-1] >= 51 + 15 + 60 + 30 - 1

    def test_nobody_speaks_after_it(self):
        room = self.room().hear(WORD, *[YES] * 8, *[NO] * blocks(6))
        assert room.only().aborted == "nobody spoke"

    def test_one_that_may_hold_a_short_command_is_not_dropped(self):
        room = self.room().hear(WORD, *[YES] * 20, *[NO] * blocks(6))
        assert room.only().ended == "pause"

    def test_it_is_heard_through_our_own_voice_of_which_nothing_is_kept(self):
        room = self.room().hear(*[NO] * 20)
        room.door.closed = True
        room.hear(*[YES] * 20, WORD, *[YES] * 10)
        room.door.closed = False
        room.hear(*[NO] * 5, *[YES] * 30, *PAUSE)
        heard = numbers(room.only())
        assert room.only().ended == "pause"
        assert heard[0] >= 20 + 20 + 1 + 10

    def test_said_again_it_begins_anew(self):
        room = self.room().hear(WORD, *[YES] * 20, WORD, *[YES] * 20, *PAUSE)
        assert [utterance.aborted for _, utterance in room.begun] == ["a wake word was said", None]


class TestBargeIn:
    @pytest.mark.parametrize("mode", ["push-to-talk", "voice", "wake-word"])
    def test_speech_during_an_answer_begins_an_utterance_in_every_mode(self, mode: Any):
        room = Room(mode=mode).hear(*[NO] * 10)
        room.listener.answering = True
        room.hear(*[YES] * 6)
        assert room.only().trigger == "barge-in"
        (at, _) = room.begun[0]
        assert (at + 1 - 10) * BLOCK_S < 0.2

    def test_it_can_be_switched_off(self):
        room = Room(mode="wake-word", barge_in=False)
        room.listener.answering = True
        assert room.hear(*[YES] * 20).begun == []

    def test_our_own_voice_is_none(self):
        room = Room()
        room.listener.answering = True
        room.door.closed = True
        assert room.hear(*[YES] * 100).begun == []
        room.door.closed = False
        room.hear(*[YES] * 20, *PAUSE)
        assert numbers(room.only())[0] >= 100, "nor does it come before what follows"

    def test_when_our_own_voice_comes_in_between_it_is_worthless(self):
        room = Room().hear(*[YES] * 10)
        room.door.closed = True
        room.hear(YES)
        assert room.only().aborted == "our own voice came in between"
