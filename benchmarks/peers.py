"""edge-runtime beside llama.cpp, both at a Gemma 4's true size: `python -m benchmarks.peers WORK RESULT.json`.

Makes what is missing in the folder WORK (20 GB on the way, 7 GB for good): a checkpoint of random weights, its int4
bundle, and a Q4_0 GGUF of the same shapes; speed and memory do not depend on the values. llama.cpp is that of the wheel
xllamacpp, with its weights read into memory and its per-layer table left on the disk, which is when it takes least
memory at full speed. Every run is a process of its own, the two take turns, and what counts is the median. The GGUF's
head and embeddings have six bits, as publishers make them; ours have four, or eight with `--head-bits 8`.

`--mobile` adds a third: the bundle of a checkpoint of the same shapes in the form of the vendor's mobile ones (see
`benchmarks.mobile_checkpoint`), 2, 4 and 8 bits a channel.

Run it on a quiet machine: `--most-busy` refuses to begin a run while others take more of the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import mobile_checkpoint, synthetic
from benchmarks.peers_plot import draw
from edge_runtime.cli.bench import WORDS
from edge_runtime.engine.loading import load
from edge_runtime.export import export_checkpoint
from edge_runtime.machine import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.engine.model import Model

OURS, THEIRS, MOBILE = "edge-runtime int4", "llama.cpp Q4_0", "edge-runtime, mobile checkpoint"
FULL_SPEED = ("OMP_WAIT_POLICY", "active")
"""llama.cpp's own default; beside a daemon its threads sleep while they wait, which costs a third of its speed."""
PROMPTS = (128, 512, 1024, 4096)
NEW_TOKENS = 32


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, help="folder for the models")
    parser.add_argument("result", type=Path, help="JSON to write; the plot lies beside it as SVG")
    parser.add_argument("--size", default="e2b", choices=["e2b", "e4b"])
    parser.add_argument("--head-bits", type=int, default=4, choices=[4, 8], help="of our head and embeddings")
    parser.add_argument("--mobile", action="store_true", help="measure a mobile checkpoint's bundle, too")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, metavar="N", help="tokens to read")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument(
        "--tokenizer", default="gemma3", metavar="small|gemma3|FOLDER", help="as for benchmarks.synthetic"
    )
    parser.add_argument("--most-busy", type=float, default=0.1, metavar="SHARE", help="of all processors (default 0.1)")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(measure(Path(args.worker), args.prompts, args.threads)))
        return
    ours = args.work / (f"{args.size}-int4" + ("-head8" if args.head_bits == 8 else ""))
    models = {OURS: ours, THEIRS: args.work / f"{args.size}-q4_0.gguf"}
    if args.mobile:
        models[MOBILE] = args.work / f"{args.size}-mobile"
    make(args.work, args.size, models, args.tokenizer, args.head_bits)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    worker = [
        sys.executable,
        "-m",
        "benchmarks.peers",
        str(args.work),
        str(args.result),
        "--threads",
        str(args.threads),
    ]
    worker += ["--prompts", *map(str, args.prompts)]
    os.environ.setdefault(*FULL_SPEED)
    # The first run of each warms the disk's cache and makes our packed weights: it is not counted.
    for run in range(args.runs + 1):
        for name, path in models.items():
            wait_for_quiet(args.most_busy)
            command = [*worker, "--worker", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"run {run}, {name}: {json.dumps(rows[name][-1])}", file=sys.stderr, flush=True)
    result = {"size": args.size, "threads": args.threads, "machine": machine(), "rows": rows}
    args.result.write_text(json.dumps(result, indent=1), encoding="utf-8")
    args.result.with_suffix(".svg").write_text(draw(result), encoding="utf-8")
    print(table(result))


def make(work: Path, size: str, models: dict[str, Path], tokenizer: str, head_bits: int) -> None:
    """What is missing of the models."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{size}-checkpoint"
    mobile = models.get(MOBILE)
    missing = [path for path in (models[OURS], mobile) if path is not None and not path.exists()]
    if missing and not checkpoint.exists():
        synthetic.main([size, str(checkpoint), "--tokenizer", tokenizer])
    if models[OURS] in missing:
        export_checkpoint(checkpoint, models[OURS], recipe="int4", head_bits=head_bits)
    if mobile is not None and mobile in missing:
        rounded = work / f"{size}-mobile-checkpoint"
        mobile_checkpoint.write(checkpoint, rounded)
        export_checkpoint(rounded, mobile, recipe="mobile")
        shutil.rmtree(rounded)
    if not models[THEIRS].exists():
        from benchmarks import gguf_synthetic  # noqa: PLC0415 - its package is in the extra `bench`

        gguf_synthetic.main([size, str(models[THEIRS]), "--tokenizer", str(models[OURS])])
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def measure(path: Path, prompts: Sequence[int], threads: int) -> dict[str, Any]:
    """One process's figures.

    Returns:
        `load_s`; by length of prompt `first_token_s`, `prefill` and `decode`, tokens a second; `anon_mb`, `file_mb` and
        `peak_mb` of this process and its children.
    """
    began = time.perf_counter()
    model = load(path, threads=threads, context=max(prompts) + NEW_TOKENS + 64)
    figures: dict[str, Any] = {"load_s": round(time.perf_counter() - began, 2), "prompts": {}}
    with model:
        list(model.complete("hello", max_tokens=2, temperature=0))
        for number, count in enumerate(prompts):
            figures["prompts"][count] = _answer(model, count, number)
        figures |= _memory()
    return figures


def _answer(model: Model, count: int, number: int) -> dict[str, float]:
    words = WORDS.split()
    # Another beginning each time, so that nothing that was read before is of use; every word is a token.
    text = f"{chr(ord('a') + number)} " + " ".join(words[at % len(words)] for at in range(count - 3))
    last = list(model.complete(text, max_tokens=NEW_TOKENS, temperature=0))[-1]
    assert last.usage  # noqa: S101 - the last piece has them
    assert last.timing  # noqa: S101
    read = last.usage["prompt_tokens"] - last.usage.get("cached_tokens", 0)
    first = last.timing["first_token_s"]
    return {
        "tokens": read,
        "written": last.usage["completion_tokens"],
        "first_token_s": first,
        "prefill": round(read / first, 2),
        "decode": last.timing["decode_tokens_per_s"],
    }


def _memory() -> dict[str, float]:
    """Of this process and its children, megabytes; an engine that only hands on to a server counts with it."""
    me = os.getpid()
    family = [me]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1]) == me:
                family.append(int(folder.name))
        except (OSError, IndexError):
            continue
    total = dict.fromkeys(("anon_mb", "file_mb", "peak_mb"), 0.0)
    for process in family:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        for name, key in (("anon_mb", "RssAnon"), ("file_mb", "RssFile"), ("peak_mb", "VmHWM")):
            total[name] += int(lines[key].split()[0]) * 1024 / 1e6
    return {name: round(value, 1) for name, value in total.items()}


def wait_for_quiet(most_busy: float) -> None:
    """Until the processors were busy for less than that share of three seconds."""
    while True:
        before, start = _busy(), time.monotonic()
        time.sleep(3)
        if (_busy() - before) / (time.monotonic() - start) / (os.cpu_count() or 1) < most_busy:
            return


def _busy() -> float:
    """CPU seconds that all processes have taken, and what the host has."""
    fields = [int(part) for part in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """This machine in a line."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {readable(memory)}"


def median(rows: list[dict[str, Any]], *path: str) -> float:
    """Of a figure of all runs but the first."""
    found = []
    for row in rows[1:] or rows:
        value: Any = row
        for key in path:
            value = value[key]
        found.append(float(value))
    return statistics.median(found)


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown, each of ours with how many times llama.cpp's it is."""
    rows = result["rows"]
    kinds = [name for name in (OURS, MOBILE) if name in rows]
    lines = [result["machine"], "", "| | " + " | ".join(f"{name} | ratio" for name in kinds) + f" | {THEIRS} |"]
    lines.append("|---|" + "---:|" * (2 * len(kinds) + 1))

    def add(label: str, *path: str, digits: int = 1) -> None:
        other = median(rows[THEIRS], *path)
        found = [median(rows[name], *path) for name in kinds]
        cells = [cell for value in found for cell in (f"{value:.{digits}f}", f"{value / other:.2f}")]
        lines.append(f"| {' | '.join([label, *cells, f'{other:.{digits}f}'])} |")

    for count in rows[OURS][0]["prompts"]:
        add(f"prompt of {count} tokens, tokens/s", "prompts", count, "prefill")
        add(f"first token after {count}, s", "prompts", count, "first_token_s", digits=2)
        add(f"writing after {count}, tokens/s", "prompts", count, "decode", digits=2)
    add("warm load, s", "load_s")
    for label, key in (("anonymous, MB", "anon_mb"), ("of files, MB", "file_mb"), ("peak, MB", "peak_mb")):
        add(label, key, digits=0)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
