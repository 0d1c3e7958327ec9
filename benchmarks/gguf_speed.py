"""Speed and memory of a GGUF through the engine that a user gets: `python -m benchmarks.gguf_speed FILE`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edge_runtime.engine.llama.load import Choices, open_gguf
from edge_runtime.engine.llama.server import Server
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.machine import readable


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gguf_speed", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=100, metavar="N", help="about so many words of prompt")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--server", type=Path, metavar="F", help="a llama-server")
    args = parser.parse_args()
    engine = open_gguf(args.file, threads=args.threads, choices=Choices(server=args.server, alone=True))
    if engine.memory is not None:
        print(*engine.memory.lines(), sep="\n")
    prompt = "word " * args.prompt_tokens
    pieces = list(engine.run(Request(raw=prompt, max_tokens=args.new_tokens, sampling=Sampling(temperature=0))))
    usage, timing = pieces[-1].usage, pieces[-1].timing
    if usage is not None and timing is not None:
        print(f"load {timing['load_s']:.1f} s")
        read = usage["prompt_tokens"] / max(1e-9, timing["first_token_s"])
        print(
            f"reads {read:.2f} tokens/s ({usage['prompt_tokens']} tokens), writes {timing['decode_tokens_per_s']:.2f}"
        )
    backend = engine.backend
    if isinstance(backend, Server):
        status = Path(f"/proc/{backend.pid}/status").read_text(encoding="ascii").splitlines()
        sizes = {
            line.split(":")[0]: 1024 * int(line.split()[1]) for line in status if line.startswith(("VmHWM", "Rss"))
        }
        print(", ".join(f"{name} {readable(size)}" for name, size in sizes.items()))
    print(f"load average {os.getloadavg()[0]:.1f}")
    engine.close()


if __name__ == "__main__":
    main()
