"""`edge-runtime transcribe`: speech to text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse

HELP = "Writes down what is said in a recording of any length; nothing said, nothing printed."
EXAMPLE = "edge-runtime transcribe --json voice.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and the options."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="WAV, FLAC, OGG or MP3")
    parser.add_argument("--mic", action="store_true", help="not in this version")
    parser.add_argument("--model", metavar="M", help="bundle folder (default: the built-in model)")
    parser.add_argument("--language", metavar="L", default="English", help="what is spoken (default English)")
    parser.add_argument("--translate-to", metavar="L", help="print a translation into this language")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the pieces and their times")


def run(args: argparse.Namespace) -> int:
    """Reads the recording first, so that a wrong file is said before a model is loaded."""
    if args.mic:
        raise EdgeRuntimeError("--mic: this version reads files only")
    if args.file is None:
        raise EdgeRuntimeError("give a FILE to transcribe")
    import edge_runtime
    from edge_runtime.media import load_audio

    samples = load_audio(args.file)
    with edge_runtime.load(args.model, threads=args.threads) as model:
        transcript = model.transcribe(samples, args.language, translate_to=args.translate_to)
    if args.json:
        print(json.dumps({"text": transcript.text, "segments": transcript.segments}, ensure_ascii=False))
    elif transcript.text:
        print(transcript.text)
    return 0
