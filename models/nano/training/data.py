"""Training batches of fixed shape, made on the CPU as numpy arrays.

A row is a tokenised conversation. Where a soft token stands, `ids` holds 0 and `audio` or `image` holds which of the
clip's or picture's soft tokens it is. The answers' tokens are listed per row: where each is predicted, and what it is.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

try:
    from . import dialog, text
except ImportError:  # run from inside the folder, as on a machine without the repository
    import dialog  # type: ignore[import-not-found, no-redef]
    import text  # type: ignore[import-not-found, no-redef]

Array = npt.NDArray[Any]
Batch = dict[str, Array]
RATE = 16000
BUCKETS = (256, 384, 512, 768)
"""Log-mel frames of a speech batch; a batch takes the smallest that holds its longest clip."""
QUESTION_FRAMES = 384
"""Frames of a spoken question about a picture."""
GRIDS = ((24, 24), (27, 21), (21, 27))


@dataclass(frozen=True)
class Rows:
    """The shape of a group of rows: how many, how long, and how many answer tokens each may have."""

    count: int
    length: int
    answers: int


@dataclass(frozen=True)
class Sizes:
    """The shapes of a training step."""

    short_speech: int = 104
    long_speech: int = 24
    images: int = 160
    spoken_images: int = 32
    text: Rows = Rows(128, 112, 32)
    long_text: Rows = Rows(48, 336, 64)

    def speech(self, frames: int) -> tuple[Rows, Rows]:
        """Rows without and with tool declarations for clips of `frames`."""
        soft = frames // 4
        return Rows(self.short_speech, soft + 112, 32), Rows(self.long_speech, soft + 344, 64)

    def image_rows(self) -> tuple[Rows, Rows]:
        """Rows with typed and with spoken questions."""
        typed = Rows(self.images - self.spoken_images, 176, 48)
        return typed, Rows(self.spoken_images, 176 + QUESTION_FRAMES // 4, 48)


@dataclass
class Row:
    """One conversation being built."""

    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    group: str = ""


class Tokens:
    """Text to ids, with soft tokens expanded."""

    def __init__(self, base: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        find = vocabulary.__getitem__
        self.audio, self.image = find("<|audio|>"), find("<|image|>")
        self._wrap = {
            self.audio: (find("<|audio>"), find("<audio|>")),
            self.image: (find("<|image>"), find("<image|>")),
        }
        self.encode = functools.lru_cache(100_000)(self._encode)

    def _encode(self, line: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(line, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def prompt(self, line: str, audio: int = 0, image: int = 0) -> list[int]:
        """Ids of a prompt whose media placeholders become `audio` and `image` soft tokens."""
        out: list[int] = []
        for token in self.encode(line):
            if token in self._wrap:
                before, after = self._wrap[token]
                out += [before, *[token] * (audio if token == self.audio else image), after]
            else:
                out.append(token)
        return out

    def row(self, parts: Sequence[tuple[str, str]], group: str, audio: int = 0, image: int = 0) -> Row:
        """A row of (prompt, answer) parts one after another."""
        row = Row(group=group)
        for prompt, answer in parts:
            row.tokens += self.prompt(prompt, audio, image)
            ids = self.encode(answer)
            row.spans.append((len(row.tokens), len(ids)))
            row.tokens += ids
        return row

    def fits(self, row: Row, rows: Rows) -> bool:
        """Whether the row goes into a group of that shape."""
        return len(row.tokens) <= rows.length and sum(n for _, n in row.spans) <= rows.answers

    def pack(self, rows: Sequence[Row], shape: Rows, name: str) -> Batch:
        """Arrays of a group, named `name.ids` and so on."""
        count, length, answers = shape.count, shape.length, shape.answers
        ids = np.zeros((count, length), np.int64)
        audio = np.full((count, length), -1, np.int64)
        image = np.full((count, length), -1, np.int64)
        at = np.zeros((count, answers), np.int64)
        target = np.zeros((count, answers), np.int64)
        weight = np.zeros((count, answers), np.float32)
        for k, row in enumerate(rows):
            tokens = np.array(row.tokens)
            for soft, index in ((self.audio, audio), (self.image, image)):
                here = np.nonzero(tokens == soft)[0]
                index[k, here] = np.arange(len(here))
                tokens[here] = 0
            ids[k, : len(tokens)] = tokens
            places = np.concatenate([np.arange(start, start + n) for start, n in row.spans])
            at[k, : len(places)] = places - 1
            target[k, : len(places)] = tokens[places]
            weight[k, : len(places)] = 1
        return {
            f"{name}.ids": ids, f"{name}.audio": audio, f"{name}.image": image,
            f"{name}.at": at, f"{name}.target": target, f"{name}.weight": weight,
        }  # fmt: skip


@dataclass
class Speech:
    """Metadata of the spoken utterances; the samples lie in the GPU's pool."""

    utterances: list[text.Utterance]
    offsets: Array
    lengths: Array


@dataclass
class Clips:
    """The clips of a batch: which utterance, how fast, how much silence around it."""

    index: list[int] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    lead: list[int] = field(default_factory=list)
    trail: list[int] = field(default_factory=list)
    silent: list[bool] = field(default_factory=list)

    def soft_tokens(self, speech: Speech, frames: int) -> int:
        """Soft tokens of the clip added last."""
        spoken = 0 if self.silent[-1] else int(np.float32(speech.lengths[self.index[-1]]) / np.float32(self.speed[-1]))
        samples = min(self.lead[-1] + spoken + self.trail[-1], frames * 160)
        return (max(0, (samples - 161) // 160 + 1) + 3) // 4

    def pack(self, speech: Speech, name: str) -> Batch:
        """Arrays for `frontend.speak` and for CTC."""
        index = np.array(self.index)
        silent = np.array(self.silent)
        alphabet = {c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz '")}
        spoken = [
            [] if quiet else [alphabet[c] for c in speech.utterances[i].spoken]
            for i, quiet in zip(self.index, self.silent, strict=True)
        ]
        return {
            f"{name}.offset": speech.offsets[index],
            f"{name}.length": np.where(silent, 1, speech.lengths[index]),
            f"{name}.speed": np.array(self.speed, np.float32),
            f"{name}.lead": np.array(self.lead),
            f"{name}.trail": np.array(self.trail),
            f"{name}.characters": np.array([c for line in spoken for c in line], np.int64),
            f"{name}.character_count": np.array([len(line) for line in spoken], np.int64),
        }


def _around(r: random.Random, speech: Speech, index: int, frames: int, clips: Clips, *, augment: bool) -> bool:
    """Adds a clip of utterance `index` if it fits into `frames`."""
    room = frames * 160
    if augment and r.random() < 0.025:
        total = r.randint(8000, room)
        for values, value in ((clips.index, index), (clips.lead, total), (clips.trail, 0)):
            values.append(value)
        clips.speed.append(1.0)
        clips.silent.append(True)
        return True
    speed = r.uniform(0.88, 1.14) if augment and r.random() < 0.7 else 1.0
    spoken = int(speech.lengths[index] / speed) + 1
    lead, trail = (r.randint(0, 6400), r.randint(800, 6400)) if augment else (1600, 1600)
    spare = room - spoken
    if spare < 1000:
        return False
    if lead + trail > spare:
        lead, trail = spare // 3, spare // 2
    for values, value in ((clips.index, index), (clips.lead, lead), (clips.trail, trail)):
        values.append(value)
    clips.speed.append(speed)
    clips.silent.append(False)
    return True


def speech_batch(
    r: random.Random, tokens: Tokens, speech: Speech, indices: Sequence[int], sizes: Sizes, *, augment: bool = True
) -> tuple[Batch, list[str]]:
    """A batch of spoken rows from candidate utterances of similar length. Returns it and each row's group."""
    longest = max(int(speech.lengths[i]) for i in indices) + (9000 if augment else 3300)
    frames = next((f for f in BUCKETS if f * 160 >= longest), BUCKETS[-1])
    short, long = sizes.speech(frames)
    order = sorted(indices, key=lambda i: speech.utterances[i].tool is None)
    clips, kept = (Clips(), Clips()), ([], [])  # type: tuple[Clips, Clips], tuple[list[Row], list[Row]]
    queue = list(order)
    while len(kept[1]) < long.count or len(kept[0]) < short.count:
        index = queue.pop(0) if queue else r.choice(indices)
        which = 1 if len(kept[1]) < long.count else 0
        if not _around(r, speech, index, frames, clips[which], augment=augment):
            continue
        utterance = speech.utterances[index]
        soft = clips[which].soft_tokens(speech, frames)
        if clips[which].silent[-1]:
            example = dialog.ask(dialog.AUDIO + dialog.ASR_PROMPT, dialog.END_TURN, "silence")
        elif which and utterance.tool:
            maker = dialog.tool_example if augment else dialog.tool_call_example
            example = maker(r, utterance, dialog.AUDIO)
        elif augment and utterance.answer and r.random() < 0.5:
            example = dialog.answer_example(r, utterance, dialog.AUDIO)
        else:
            prompt = dialog.ASR_PROMPT if not augment or r.random() < 0.65 else r.choice(dialog.ASR_SHORT)
            user = dialog.AUDIO + prompt if not augment or r.random() < 0.8 else prompt + dialog.AUDIO
            example = dialog.ask(user, utterance.written + dialog.END_TURN, "asr")
        row = tokens.row([(example.prompt, example.answer)], example.group, audio=soft)
        if not tokens.fits(row, (short, long)[which]):
            for values in vars(clips[which]).values():
                values.pop()
            continue
        kept[which].append(row)
    merged = Clips(**{name: vars(clips[0])[name] + vars(clips[1])[name] for name in vars(clips[0])})
    batch = merged.pack(speech, "clips")
    batch |= tokens.pack(kept[0], short, "short") | tokens.pack(kept[1], long, "long")
    batch["frames"] = np.array(frames)
    return batch, [row.group for rows in kept for row in rows]


def image_batch(
    r: random.Random,
    tokens: Tokens,
    questions: Sequence[Sequence[tuple[str, str, str]]],
    grids: Array,
    spoken: tuple[Speech, dict[str, list[int]]] | None,
    sizes: Sizes,
    *,
    indices: Sequence[int] | None = None,
) -> tuple[Batch, list[str]]:
    """A batch of picture rows; the first question of some is spoken. With `indices`, one typed question each."""
    typed, heard = sizes.image_rows()
    chosen = list(indices) if indices is not None else [r.randrange(len(questions)) for _ in range(sizes.images)]
    rows: tuple[list[Row], list[Row]] = ([], [])
    clips = Clips()
    for place, index in enumerate(chosen):
        speaks = place >= typed.count
        w, h = grids[index]
        asked = list(questions[index])
        r.shuffle(asked)
        asked = asked[: 1 if indices is not None else 2 if speaks else 4]
        soft = 0
        first = dialog.IMAGE + asked[0][0]
        if speaks and spoken is not None:
            speech, by_text = spoken
            known = [entry for entry in asked if entry[0] in by_text]
            if known:
                asked = [known[0], *(entry for entry in asked if entry is not known[0])]
                utterance = r.choice(by_text[known[0][0]])
                first = dialog.IMAGE + known[0][0]
                if _around(r, speech, utterance, QUESTION_FRAMES, clips, augment=True):
                    if clips.silent[-1]:
                        for values in vars(clips).values():
                            values.pop()
                    else:
                        soft = clips.soft_tokens(speech, QUESTION_FRAMES)
                        first = dialog.IMAGE + dialog.AUDIO
        if speaks and spoken is not None and soft == 0:  # every spoken row owns one clip, heard or not
            clips.index.append(0)
            clips.speed.append(1.0)
            clips.lead.append(1600)
            clips.trail.append(0)
            clips.silent.append(True)
        parts = []
        for k, (question, answer, _) in enumerate(asked):
            opening = "<bos>" if k == 0 else "\n"
            user = first if k == 0 else question
            parts.append((f"{opening}<|turn>user\n{user}<turn|>\n<|turn>model\n", answer + dialog.END_TURN))
        row = tokens.row(parts, asked[0][2], audio=soft, image=int(w) * int(h) // 9)
        shape = heard if speaks else typed
        while not tokens.fits(row, shape):
            parts.pop()
            row = tokens.row(parts, asked[0][2], audio=soft, image=int(w) * int(h) // 9)
        rows[speaks].append(row)
    batch = tokens.pack(rows[0], typed, "typed")
    batch["pictures"] = np.array(chosen)
    if spoken is not None:
        batch |= tokens.pack(rows[1], heard, "heard") | clips.pack(spoken[0], "asked")
    return batch, [row.group for part in rows for row in part]


def text_batch(
    r: random.Random, tokens: Tokens, pool: Sequence[text.Utterance], answered: Sequence[text.Utterance], sizes: Sizes
) -> tuple[Batch, list[str]]:
    """A batch of typed rows."""
    short: list[Row] = []
    long: list[Row] = []
    while len(short) < sizes.text.count or len(long) < sizes.long_text.count:
        example = dialog.text_example(r, pool, answered)
        row = tokens.row([(example.prompt, example.answer)], example.group)
        if tokens.fits(row, sizes.text) and len(short) < sizes.text.count:
            short.append(row)
        elif (
            # A short row in the long group would waste it; tool rows are the long ones and come often enough.
            len(row.tokens) > sizes.text.length
            and tokens.fits(row, sizes.long_text)
            and len(long) < sizes.long_text.count
        ):
            long.append(row)
    batch = tokens.pack(short, sizes.text, "text") | tokens.pack(long, sizes.long_text, "long_text")
    return batch, [row.group for row in [*short, *long]]


def batches(
    seed: int,
    tokens: Tokens,
    speech: Speech,
    questions: Sequence[Sequence[tuple[str, str, str]]],
    grids: Array,
    sizes: Sizes,
) -> Iterator[Batch]:
    """Endless training batches."""
    r = random.Random(seed)
    draw = np.random.default_rng(seed)
    pool = text.corpus(seed, 30000)
    answered = [utterance for utterance in pool if utterance.answer]
    by_text: dict[str, list[int]] = {}
    for index, utterance in enumerate(speech.utterances):
        if utterance.kind == "imgq":
            by_text.setdefault(utterance.written, []).append(index)
    size = sizes.short_speech + sizes.long_speech
    while True:
        # Clips of similar length go together: sort a window of twelve batches.
        window = draw.integers(0, len(speech.utterances), size * 12)
        window = window[np.argsort(speech.lengths[window] + draw.integers(0, 8000, len(window)))].reshape(12, size)
        draw.shuffle(window)
        for indices in window:
            batch, _ = speech_batch(r, tokens, speech, [int(i) for i in indices], sizes)
            batch |= image_batch(r, tokens, questions, grids, (speech, by_text), sizes)[0]
            batch |= text_batch(r, tokens, pool, answered, sizes)[0]
            yield batch
