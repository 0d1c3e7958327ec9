"""`edge-runtime transcribe`: speech to text."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse

    from edge_runtime.engine.model import Model
    from edge_runtime.perception.source import Status
    from edge_runtime.perception.utterance import Utterance

HELP = "Writes down what is said in a recording of any length; nothing said, nothing printed."
EXAMPLE = "edge-runtime transcribe --json voice.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and the options."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="WAV, FLAC, OGG or MP3")
    parser.add_argument("--mic", action="store_true", help="listen to a microphone until Ctrl-C, a line per utterance")
    parser.add_argument("--device", metavar="D", help="name of the sound input or part of it (default: the system's)")
    parser.add_argument("--model", metavar="M", help="bundle folder or GGUF file (default: the built-in model)")
    parser.add_argument("--language", metavar="L", default="English", help="what is spoken (default English)")
    parser.add_argument("--translate-to", metavar="L", help="print a translation into this language")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--memory", metavar="SIZE", help="what the model may take, such as 2G (default: what there is)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the pieces and their times")


def run(args: argparse.Namespace) -> int:
    """Reads the recording first, so that a wrong file is said before a model is loaded."""
    if args.mic:
        if args.file is not None:
            raise EdgeRuntimeError("give a FILE or --mic, not both")
        return _listen(args)
    if args.file is None:
        raise EdgeRuntimeError("give a FILE to transcribe, or --mic")
    from edge_runtime.cli._loading import load_model
    from edge_runtime.media import load_audio

    samples = load_audio(args.file)
    with load_model(args.model, threads=args.threads, memory_budget=args.memory) as model:
        transcript = model.transcribe(samples, args.language, translate_to=args.translate_to)
    _print(transcript.text, transcript.segments, json_wanted=args.json)
    return 0


def _listen(args: argparse.Namespace) -> int:
    """Writes down each utterance as it ends; with --json all of them when Ctrl-C has ended it."""
    from edge_runtime.cli._loading import load_model
    from edge_runtime.perception.ear import Ear, EarOptions

    heard: queue.SimpleQueue[Utterance | EdgeRuntimeError] = queue.SimpleQueue()
    segments: list[dict[str, Any]] = []
    with load_model(args.model, threads=args.threads, memory_budget=args.memory) as model:

        def changed(status: Status) -> None:
            if status.state == "open":
                print(f"listening to {args.device or 'the microphone'}; Ctrl-C ends", file=sys.stderr)
            elif status.state == "lost":
                heard.put(EdgeRuntimeError(f"{status.label}: {status.detail}"))

        began = time.time()
        options = EarOptions(device=args.device)
        with contextlib.suppress(KeyboardInterrupt), Ear("to write down", options, heard.put, on_change=changed):
            while True:
                utterance = heard.get()
                if isinstance(utterance, EdgeRuntimeError):
                    raise utterance
                segments += _written(model, utterance, began, args)
    if args.json:
        _print(" ".join(segment["text"] for segment in segments), segments, json_wanted=True)
    return 0


def _written(model: Model, utterance: Utterance, began: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What was said in an utterance, which it waits for; printed, unless all is to be JSON."""
    pieces = list(utterance)
    if utterance.aborted is not None or not pieces:
        return []
    samples = np.concatenate(pieces)
    transcript = model.transcribe(samples, args.language, translate_to=args.translate_to)
    if transcript.text and not args.json:
        print(transcript.text, flush=True)
    start = max(0.0, utterance.began - began)
    return [
        {"start": round(start + part["start"], 2), "end": round(start + part["end"], 2), "text": part["text"]}
        for part in transcript.segments
    ]


def _print(text: str, segments: list[dict[str, Any]], *, json_wanted: bool) -> None:
    if json_wanted:
        print(json.dumps({"text": text, "segments": segments}, ensure_ascii=False))
    elif text:
        print(text)
