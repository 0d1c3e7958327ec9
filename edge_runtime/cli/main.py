"""Finds the verb, runs it, and turns what goes wrong into one line and an exit status.

Each verb is a module beside this one with `HELP`, `EXAMPLE`, `add_arguments(parser)` and `run(args) -> int`. Only the
module of the verb in use is imported, so that no command pays for another's libraries.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Every verb with its line in `edge-runtime --help`; the module of that name says the rest.
VERBS = {
    "ask": "one answer to a prompt, with images and audio if you like",
    "chat": "a conversation in the terminal",
    "transcribe": "speech to text",
    "serve": "the daemon: answers requests over MQTT",
    "doctor": "what this box has, and how to mend what is missing",
    "demo": "broker and daemon on loopback; one spoken and one image question, answered",
    "models": "what is on this box, what can be fetched, what fits its memory",
    "export": "Hugging Face checkpoint -> bundle folder",
    "verify": "check a bundle's files against its manifest",
    "eval": "quality of a bundle on a folder of cases",
    "bench": "how fast a model is here, and what memory it takes",
}


class Verb(Protocol):
    """What a verb's module offers."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the verb's options to its parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; the result is the exit status."""


class Parser(argparse.ArgumentParser):
    """argparse that answers bad input with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(verb: str | None) -> Parser:
    """The parser; only `verb`'s module is imported, the other verbs are listed by name.

    Raises:
        EdgeRuntimeError: `verb` is not one of `VERBS`.
    """
    parser = Parser(
        prog="edge-runtime",
        description="Gemma 4 on the device: text, images and speech, answered offline.",
        epilog="edge-runtime VERB --help shows a verb's options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"edge-runtime {version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, help_line in VERBS.items():
        if name == verb:
            module = cast("Verb", importlib.import_module(f"edge_runtime.cli.{name}"))
            sub = verbs.add_parser(
                name,
                help=help_line,
                description=module.HELP,
                epilog=f"example:\n  {module.EXAMPLE.strip()}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        else:
            verbs.add_parser(name, help=help_line, add_help=False)
    return parser


def version() -> str:
    """The installed version, or "0" when run from a folder that was never installed."""
    try:
        return importlib.metadata.version("edge-runtime")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `edge-runtime` with `argv` (default: the process's arguments); the result is the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), None)

    def run() -> int:
        args = build_parser(verb).parse_args(words)
        return int(args.run(args))

    return guarded(run)


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns; what goes wrong in it becomes one line on stderr and an exit status."""
    try:
        return run()
    except EdgeRuntimeError as error:
        print(f"edge-runtime: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away: not an error. stdout is replaced so that the exit flush stays silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        # A full disk, a file that may not be read: the user's to mend, so no traceback.
        where = f"{error.filename}: " if error.filename else ""
        print(f"edge-runtime: {where}{error.strerror or error}", file=sys.stderr)
        return 2
