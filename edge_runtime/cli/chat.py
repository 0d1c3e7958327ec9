"""`edge-runtime chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from edge_runtime.engine.model import Model

HELP = "Talks with a model. Ctrl-C stops an answer, Ctrl-D ends the program; /help lists what else can be typed."
EXAMPLE = "edge-runtime chat --system 'You are a museum guide.'"

COMMANDS = {
    "/image": "FILE: show it an image with the next question",
    "/audio": "FILE: let it hear a recording with the next question",
    "/video": "FILE: show it a video with the next question",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "end (or Ctrl-D)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--model", metavar="M", help="bundle folder or GGUF file (default: the built-in model)")
    parser.add_argument("--system", metavar="S", help="system prompt")
    parser.add_argument("--think", action="store_true", help="let the model think first")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="tokens of an answer at most")
    parser.add_argument("--temperature", metavar="T", type=float, help="0: always the likeliest answer")
    parser.add_argument("--seed", metavar="N", type=int, help="for sampled answers that can be repeated")
    parser.add_argument("--context", metavar="N", type=int, help="tokens of the conversation (default 4096)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--memory", metavar="SIZE", help="what the model may take, such as 2G (default: what there is)")


def run(args: argparse.Namespace) -> int:
    """Loads the model, talks until the input ends."""
    from edge_runtime.cli._loading import load_model

    with load_model(args.model, threads=args.threads, context=args.context, memory_budget=args.memory) as model:
        options = {
            "think": args.think,
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "seed": args.seed,
            "overflow": "drop_oldest_turns",
        }
        conversation = Conversation(model, args.system, options)
        if sys.stdin.isatty():
            _edit_lines()
            print(f"{model.info['name']}. Ctrl-C stops an answer, Ctrl-D ends, /help says more.")
        while (line := _ask()) is not None:
            if line.split(maxsplit=1)[:1] == ["/quit"]:
                break
            try:
                conversation.take(line)
            except EdgeRuntimeError as error:
                print(f"edge-runtime: {error}", file=sys.stderr)
    return 0


class Conversation:
    """What was said, and the media that wait for the next question.

    Attributes:
        messages: Hugging Face's chat format.
    """

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]) -> None:
        self._model, self._options = model, options
        self._start = [{"role": "system", "content": system}] if system else []
        self._waiting: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = list(self._start)

    def take(self, line: str) -> None:
        """Does what a line says: a command, else a question.

        Raises:
            EdgeRuntimeError: It cannot be done.
        """
        line = line.strip()
        if not line.startswith("/"):
            if line or self._waiting:
                self._answer(line)
            return
        command, _, rest = line.partition(" ")
        if command in {"/image", "/audio", "/video"}:
            self._attach(command[1:], rest.strip().strip("'\""))
        elif command == "/reset":
            self.messages, self._waiting = list(self._start), []
            print("(forgotten)")
        elif command == "/help":
            for name, says in COMMANDS.items():
                print(f"{name} {says}")
        else:
            raise EdgeRuntimeError(f"unknown command {command}; there are {', '.join(COMMANDS)}")

    def _attach(self, kind: str, file: str) -> None:
        from edge_runtime import media

        if not file:
            raise EdgeRuntimeError(f"/{kind} FILE")
        path = Path(file).expanduser()
        if not path.is_file():
            raise EdgeRuntimeError(f"{file}: no such file")
        source: Any = path
        if kind != "video":
            source = media.load_image(path) if kind == "image" else media.load_audio(path)
        self._waiting.append({"type": kind, kind: source})
        print(f"({kind} {path.name}: ask about it)")

    def _answer(self, question: str) -> None:
        """Asks, prints the answer as it comes. What was said before a Ctrl-C stays said."""
        content = [*self._waiting, *([{"type": "text", "text": question}] if question else [])]
        asked = {"role": "user", "content": content if self._waiting else question}
        text = ""
        with _stopped_by_ctrl_c() as cancel:
            try:
                for piece in self._model.chat([*self.messages, asked], cancel=cancel, **self._options):
                    text += piece.text
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
            except EdgeRuntimeError as error:
                if error.code != "cancelled":
                    raise
                text += " (stopped)" if text else "(stopped)"
                sys.stdout.write(" (stopped)")
            finally:
                if not text.endswith("\n"):
                    print(flush=True)
        self._waiting = []
        self.messages += [asked, {"role": "assistant", "content": text.removesuffix("(stopped)").strip() or "..."}]


@contextlib.contextmanager
def _stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C is one."""
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def stop(signum: int, frame: Any) -> None:
        if cancel.is_set():
            signal.default_int_handler(signum, frame)
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def _ask() -> str | None:
    """The next line; None at the end of the input."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(Ctrl-D ends)")


def _edit_lines() -> None:
    """Line editing, earlier lines by the arrow keys, commands and file names by Tab."""
    try:
        import readline
    except ImportError:  # a Python without it
        return

    def complete(text: str, state: int) -> str | None:
        line = readline.get_line_buffer()
        if line.startswith("/") and " " not in line:
            found = [name for name in COMMANDS if name.startswith(text)]
        else:
            path = Path(text).expanduser()
            folder, stem = (path, "") if text.endswith("/") else (path.parent, path.name)
            names = sorted(folder.iterdir()) if folder.is_dir() else []
            found = [str(name) + ("/" if name.is_dir() else "") for name in names if name.name.startswith(stem)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
