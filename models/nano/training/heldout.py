"""Makes the held-out evaluation sets: `python -m models.nano.training.heldout OUT [--seed N] [--per-group N]`.

OUT/wer, OUT/vision, OUT/tools and OUT/text each get a cases.jsonl for `edge-runtime eval`, and its WAV or PNG files
(with --compact Ogg Vorbis and WebP, which lose a little and take a tenth).
No training run sees these sentences (`text.is_heldout`), these facts and pictures (other seeds), or the voices of the
groups espeak, rms, pico_us and joe.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from . import dialog, voices
    from . import text as tx
    from .speech import Speaks, Studio
except ImportError:  # run from inside the folder
    import dialog  # type: ignore[import-not-found, no-redef]
    import text as tx  # type: ignore[import-not-found, no-redef]
    import voices  # type: ignore[import-not-found, no-redef]
    from speech import Speaks, Studio  # type: ignore[import-not-found, no-redef]

import numpy as np
import soundfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.Image import Image

Case = dict[str, Any]
Spoken = list[tuple[tx.Utterance, np.ndarray]]

SETS = ("wer", "vision", "tools", "text")
WER_VOICES = ("seen", "espeak", "rms", "pico_us", "joe")
TOOL_VOICES = ("seen", "rms", "joe")
NOISE_DB = (20, 10)
_REST = np.zeros(voices.RATE // 5, np.int16)
"""Silence before and after the speech: a recording does not begin with the first sound."""


class Missing(Exception):  # noqa: N818 - a condition, not a fault
    """Synthesizers that a set needs are not installed."""


def _noisy(samples: np.ndarray, decibel: float, seed: int) -> np.ndarray:
    """int16 samples with white noise `decibel` below their mean power."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise = np.random.default_rng(seed).normal(0.0, np.sqrt(power * 10 ** (-decibel / 10)), len(samples))
    return np.clip(samples + noise, -32768, 32767).astype(np.int16)


class Writer:
    """Collects one set in a folder of its own and puts it in place at the end. A context manager."""

    def __init__(self, folder: Path, *, compact: bool = False) -> None:
        self._final = folder
        self._compact = compact
        self._folder = folder.with_name(f".{folder.name}.{os.getpid()}")
        self._cases: list[Case] = []

    def __enter__(self) -> Writer:  # noqa: PYI034 - this class is not subclassed
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            lines = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in self._cases)
            (self._folder / "cases.jsonl").write_text(lines, encoding="utf-8")
            if (self._final / "cases.jsonl").exists():
                shutil.rmtree(self._final)
            self._folder.rename(self._final)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, case: Case) -> None:
        """One case."""
        self._cases.append(case)

    def _path(self, group: str, number: int, suffix: str) -> tuple[Path, str]:
        """Where a medium goes, and its name for the case."""
        name = f"{group}/{number:03d}{suffix}"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        return path, name

    def sound(self, group: str, number: int, samples: np.ndarray) -> str:
        """Writes a WAV (16 kHz, mono, 16 bit) or a Vorbis file and returns its name."""
        path, name = self._path(group, number, ".ogg" if self._compact else ".wav")
        soundfile.write(path, np.concatenate([_REST, samples, _REST]), voices.RATE)
        return name

    def picture(self, group: str, number: int, image: Image) -> str:
        """Writes a PNG or WebP file and returns its name."""
        path, name = self._path(group, number, ".webp" if self._compact else ".png")
        image.save(path)
        return name

    def __len__(self) -> int:
        return len(self._cases)


class Maker:
    """Makes the sets from one seed."""

    def __init__(
        self, out: Path, seed: int, per_group: int, studio: Speaks, skip: frozenset[str], *, compact: bool = False
    ) -> None:
        self._out, self._seed, self._count, self._studio, self._skip = out, seed, per_group, studio, skip
        self._compact = compact

    def _writer(self, name: str) -> Writer:
        return Writer(self._out / name, compact=self._compact)

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"heldout-{self._seed}-{purpose}")

    def _spoken(self, voice: str, purpose: str, kinds: tuple[str, ...] | None = None) -> Spoken:
        """`per_group` held-out utterances with their int16 audio; fewer only when the voice fails on many."""
        spare = self._count + self._count // 5 + 4
        utterances = tx.corpus(self._random(purpose).randrange(1 << 40), spare, heldout=True, kinds=kinds)
        results = self._studio.speak(voice, utterances, f"heldout-{self._seed}-{purpose}")
        kept = [(u, result[1]) for u, result in zip(utterances, results, strict=True) if not isinstance(result, str)]
        return kept[: self._count]

    def _voices(self, names: tuple[str, ...]) -> Iterator[str]:
        return (name for name in names if name not in self._skip)

    def wer(self) -> int:
        """Speech of voices seen in training, of voices that were not, and with noise."""
        with self._writer("wer") as writer:
            for voice in self._voices(WER_VOICES):
                spoken = self._spoken(voice, f"wer-{voice}")
                takes: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {voice: lambda samples, _: samples}
                if voice == "seen":
                    for db in NOISE_DB:
                        takes[f"seen_{db}db"] = lambda samples, i, db=db: _noisy(samples, db, i)  # type: ignore[misc]
                for group, take in takes.items():
                    for i, (utterance, samples) in enumerate(spoken):
                        audio = writer.sound(group, i, take(samples, self._seed * 100_000 + i))
                        writer.add({"audio": audio, "text": utterance.written, "group": group})
            return len(writer)

    def tools(self) -> int:
        """Commands with one to four tools declared, typed and spoken; and commands that no declared tool fits."""
        r = self._random("tools")
        with self._writer("tools") as writer:
            commands = tx.corpus(r.randrange(1 << 40), 2 * self._count, heldout=True, kinds=("cmd",))
            for command in commands[: self._count]:
                writer.add(self._tool_case(r, command, "typed") | {"messages": _user(command.written)})
            for command in commands[self._count :]:
                others = [name for name in dialog.TOOLS if name != command.tool]
                declared = [dialog.tool_schema(name) for name in r.sample(others, r.randint(1, 4))]
                case = {"messages": _user(command.written), "tools": declared, "calls": [], "group": "typed_no_tool"}
                writer.add(case)
            for voice in self._voices(TOOL_VOICES):
                group = f"spoken_{voice}"
                for i, (command, samples) in enumerate(self._spoken(voice, f"tools-{voice}", ("cmd",))):
                    writer.add(self._tool_case(r, command, group) | {"audio": writer.sound(group, i, samples)})
            return len(writer)

    @staticmethod
    def _tool_case(r: random.Random, command: tx.Utterance, group: str) -> Case:
        declared = [dialog.tool_schema(name) for name in dialog.pick_tools(r, command.tool)]
        return {"tools": declared, "calls": [{"name": command.tool, "arguments": command.arguments}], "group": group}

    def text(self) -> int:
        """Typed: the kiosk's facts, sums, facts from earlier turns, a tool's result, and what it can't know."""
        r = self._random("text")
        with self._writer("text") as writer:
            for kind in ("faq", "math", "unknown"):
                # A small closed set repeats itself: each question once.
                drawn = tx.corpus(r.randrange(1 << 40), 20 * self._count, heldout=True, kinds=(kind,))
                for question in list({u.spoken: u for u in drawn}.values())[: self._count]:
                    writer.add({"messages": _user(question.written), "answer": question.answer, "group": kind})
            full = {"fact": 0, "fact_missing": 0, "tool_result": 0}
            while min(full.values()) < self._count:
                makes_fact = min(full["fact"], full["fact_missing"]) < self._count
                example = dialog.fact_example(r) if makes_fact else dialog.response_example(r)
                full[example.group] += 1
                if full[example.group] <= self._count:
                    writer.add(_typed(example))
            return len(writer)

    def vision(self) -> int:
        """Pictures never drawn before, one question each, `per_group` of every kind of question."""
        try:
            from . import images
        except ImportError:
            import images  # type: ignore[import-not-found, no-redef]
        r = self._random("vision")
        full = dict.fromkeys(images.QUESTION_GROUPS, 0)
        with self._writer("vision") as writer:
            while min(full.values()) < self._count:
                sample = images.render(r, heldout=True)
                question, answer, group = min(sample.questions, key=lambda entry: full[entry[2]])
                if full[group] >= self._count:
                    continue
                name = writer.picture(group, full[group], sample.image)
                writer.add({"image": name, "question": question, "answer": answer, "group": group})
                full[group] += 1
            return len(writer)


def _user(content: str) -> list[Case]:
    return [{"role": "user", "content": content}]


def _typed(example: dialog.Example) -> Case:
    case: Case = {
        "messages": list(example.messages),
        "answer": example.answer.removesuffix(dialog.END_TURN),
        "group": example.group,
    }
    return case | ({"tools": [dialog.tool_schema(name) for name in example.tools]} if example.tools else {})


def _needed(sets: list[str]) -> list[str]:
    return [*(WER_VOICES if "wer" in sets else TOOL_VOICES if "tools" in sets else ())]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Makes held-out evaluation sets for edge-runtime eval.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-group", type=int, default=100, help="cases in each group")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help="default: all four")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many speak at once")
    parser.add_argument("--compact", action="store_true", help="small media files: Ogg Vorbis and WebP")
    parser.add_argument("--skip-missing", action="store_true", help="leave out groups whose synthesizer is missing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 when all sets are there, 2 when a synthesizer is missing."""
    args = _arguments(argv)
    absent = {name: found for name in _needed(args.sets) if (found := voices.missing(name))}
    reasons = "; ".join(dict.fromkeys(reason for found in absent.values() for reason in found.values()))
    if absent and not args.skip_missing:
        print(f"heldout: cannot speak {', '.join(absent)}: {reasons}", file=sys.stderr)
        return 2
    if absent:
        print(f"heldout: left out {', '.join(absent)}: {reasons}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    with Studio(args.processes) as studio:
        maker = Maker(args.out, args.seed, args.per_group, studio, frozenset(absent), compact=args.compact)
        for name in args.sets:
            print(f"{name}: {getattr(maker, name)()} cases", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
