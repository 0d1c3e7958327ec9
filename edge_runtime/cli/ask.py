"""`edge-runtime ask`: one answer, streamed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from edge_runtime.engine.protocol import Piece

HELP = "Answers one prompt, with images and audio if you like; text is printed as it comes."
EXAMPLE = 'edge-runtime ask --image front.jpg "Is the door open or closed?"'

_CHAT_ONLY = ("image", "audio", "video", "system", "think", "thinking_budget", "tools", "image_tokens")
_SAMPLING = (
    ("temperature", float, "T", "0: always the likeliest answer"),
    ("top-p", float, "P", "sample from the likeliest tokens that together have this probability"),
    ("top-k", int, "K", "sample from so many of the likeliest tokens; 0: all"),
    ("min-p", float, "P", "and from none that is less likely than this share of the likeliest one"),
    ("repetition-penalty", float, "X", "above 1: fewer repetitions"),
    ("presence-penalty", float, "X", "above 0: fewer repetitions of the answer's own words"),
    ("frequency-penalty", float, "X", "the same, more for each time"),
    ("seed", int, "N", "for sampled answers that can be repeated"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PROMPT and the options."""
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from standard input")
    parser.add_argument("--model", metavar="M", help="bundle folder or GGUF file (default: the built-in model)")
    parser.add_argument("--image", metavar="F", action="append", default=[], help="JPEG, PNG or WebP; may be repeated")
    parser.add_argument("--audio", metavar="F", action="append", default=[], help="WAV, FLAC, OGG or MP3, 30 s at most")
    parser.add_argument("--video", metavar="F", help="up to 60 s of video, of which a picture a second is looked at")
    parser.add_argument("--system", metavar="S", help="system prompt")
    parser.add_argument("--think", action="store_true", help="let the model think first (thoughts go to --json)")
    parser.add_argument("--thinking-budget", metavar="N", type=int, help="tokens of thought at most")
    parser.add_argument("--schema", metavar="F", help="JSON file: the JSON schema that the answer keeps to")
    parser.add_argument("--regex", metavar="R", help="regular expression that the whole answer matches")
    parser.add_argument("--choice", metavar="S", action="append", help="the answer is one of these; may be repeated")
    parser.add_argument("--tools", metavar="F", help="JSON file: a list of functions that the model may call")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="tokens to generate at most")
    for name, kind, unit, says in _SAMPLING:
        parser.add_argument(f"--{name}", metavar=unit, type=kind, help=says)
    parser.add_argument("--stop", metavar="S", action="append", help="text that ends the answer; may be repeated")
    parser.add_argument("--image-tokens", metavar="N", type=int, help="70, 140, 280, 560 or 1120 per image")
    parser.add_argument("--raw", action="store_true", help="continue PROMPT as it stands, without the chat template")
    parser.add_argument("--context", metavar="N", type=int, help="tokens of prompt and answer together (default 4096)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--memory", metavar="SIZE", help="what the model may take, such as 2G (default: what there is)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Checks what can be checked, loads the model, answers."""
    _refuse(args)
    tools = _tools(args.tools)
    schema = _schema(args.schema)
    for file in (*args.image, *args.audio, *([args.video] if args.video else [])):
        if not Path(file).is_file():
            raise EdgeRuntimeError(f"{file}: no such file")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    from edge_runtime.cli._loading import load_model

    with load_model(args.model, threads=args.threads, context=args.context, memory_budget=args.memory) as model:
        options = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name, *_ in _SAMPLING}
        options |= {name: getattr(args, name) for name in ("max_tokens", "stop", "regex", "choice")}
        options["schema"] = schema
        if args.raw:
            pieces = model.complete(prompt, **options)
        else:
            pieces = model.chat(
                _messages(args, prompt),
                tools=tools,
                think=args.think,
                thinking_budget=args.thinking_budget,
                image_tokens=args.image_tokens,
                **options,
            )
        if args.json:
            print(json.dumps(_to_json(list(pieces)), ensure_ascii=False))
        else:
            _stream(pieces)
    return 0


def _refuse(args: argparse.Namespace) -> None:
    if args.raw:
        given = [f"--{name.replace('_', '-')}" for name in _CHAT_ONLY if getattr(args, name)]
        if given:
            raise EdgeRuntimeError(f"--raw takes text only, without the chat template: leave out {', '.join(given)}")


def _messages(args: argparse.Namespace, prompt: str) -> list[dict[str, Any]]:
    """Media before the text, as the model was trained."""
    content = [{"type": "image", "image": file} for file in args.image]
    content += [{"type": "video", "video": args.video}] if args.video else []
    content += [{"type": "audio", "audio": file} for file in args.audio]
    if prompt:
        content.append({"type": "text", "text": prompt})
    if not content:
        raise EdgeRuntimeError("the prompt is empty")
    system = [{"role": "system", "content": args.system}] if args.system else []
    return [*system, {"role": "user", "content": content}]


def _tools(file: str | None) -> list[dict[str, Any]] | None:
    if file is None:
        return None
    from edge_runtime.gemma.tools import check_tools

    return check_tools(_json(file))


def _schema(file: str | None) -> dict[str, Any] | None:
    if file is None:
        return None
    schema = _json(file)
    if not isinstance(schema, dict):
        raise EdgeRuntimeError(f"{file} is not a JSON schema (an object)")
    return schema


def _json(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeRuntimeError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise EdgeRuntimeError(f"{file} is not JSON: {error}") from None


def _stream(pieces: Iterator[Piece]) -> None:
    ended_line = True
    for piece in pieces:
        if piece.text:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            ended_line = piece.text.endswith("\n")
        if piece.tool_calls:
            sys.stdout.write("" if ended_line else "\n")
            for call in piece.tool_calls:
                print(json.dumps(call, ensure_ascii=False))
            ended_line = True
    if not ended_line:
        print()


def _to_json(pieces: list[Piece]) -> dict[str, Any]:
    last = pieces[-1]
    return {
        "text": "".join(piece.text for piece in pieces),
        "thoughts": last.thoughts,
        "tool_calls": last.tool_calls,
        "finish_reason": last.finish_reason,
        "usage": last.usage,
        "timing": last.timing,
    }
