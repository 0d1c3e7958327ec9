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

_CHAT_ONLY = ("image", "audio", "system", "think", "tools", "image_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PROMPT and the options."""
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from standard input")
    parser.add_argument("--model", metavar="M", help="bundle folder (default: the built-in model)")
    parser.add_argument("--image", metavar="F", action="append", default=[], help="JPEG, PNG or WebP; may be repeated")
    parser.add_argument("--audio", metavar="F", action="append", default=[], help="WAV, FLAC, OGG or MP3, 30 s at most")
    parser.add_argument("--video", metavar="F", help="not in this version")
    parser.add_argument("--system", metavar="S", help="system prompt")
    parser.add_argument("--think", action="store_true", help="let the model think first (thoughts go to --json)")
    parser.add_argument("--schema", metavar="F", help="not in this version")
    parser.add_argument("--tools", metavar="F", help="JSON file: a list of functions that the model may call")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="tokens to generate at most")
    parser.add_argument("--temperature", metavar="T", type=float, help="0: always the likeliest answer")
    parser.add_argument("--seed", metavar="N", type=int, help="for sampled answers that can be repeated")
    parser.add_argument("--image-tokens", metavar="N", type=int, help="70, 140, 280, 560 or 1120 per image")
    parser.add_argument("--raw", action="store_true", help="continue PROMPT as it stands, without the chat template")
    parser.add_argument("--context", metavar="N", type=int, help="tokens of prompt and answer together (default 4096)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Checks what can be checked, loads the model, answers."""
    _refuse(args)
    tools = _tools(args.tools)
    for file in (*args.image, *args.audio):
        if not Path(file).is_file():
            raise EdgeRuntimeError(f"{file}: no such file")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    import edge_runtime

    with edge_runtime.load(args.model, threads=args.threads, context=args.context) as model:
        options = {"max_tokens": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
        if args.raw:
            pieces = model.complete(prompt, **options)
        else:
            pieces = model.chat(
                _messages(args, prompt), tools=tools, think=args.think, image_tokens=args.image_tokens, **options
            )
        if args.json:
            print(json.dumps(_to_json(list(pieces)), ensure_ascii=False))
        else:
            _stream(pieces)
    return 0


def _refuse(args: argparse.Namespace) -> None:
    if args.video:
        raise EdgeRuntimeError("--video: this version takes no video; give single frames with --image")
    if args.schema:
        raise EdgeRuntimeError("--schema: this version cannot hold an answer to a JSON schema")
    if args.raw:
        given = [f"--{name.replace('_', '-')}" for name in _CHAT_ONLY if getattr(args, name)]
        if given:
            raise EdgeRuntimeError(f"--raw takes text only, without the chat template: leave out {', '.join(given)}")


def _messages(args: argparse.Namespace, prompt: str) -> list[dict[str, Any]]:
    """Media before the text, as the model was trained."""
    content = [{"type": "image", "image": file} for file in args.image]
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
    try:
        tools = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeRuntimeError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise EdgeRuntimeError(f"{file} is not JSON: {error}") from None
    from edge_runtime.gemma.tools import check_tools

    return check_tools(tools)


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
