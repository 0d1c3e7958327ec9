"""Four peers on a part of E2B that all of them can convert: `python -m benchmarks.peers_cut WORK RESULT.json`.

LiteRT-LM's converter takes about eight bytes of memory for each weight, 40 GB for the whole E2B, and its official
files cannot be made again. So all get the same ten layers of E2B's true shapes, five with keys and values of their own
and five wide ones that share them, with the whole vocabulary and random weights. LiteRT-LM runs what litert-torch makes
with its recipe of four bits by channel, onnxruntime-genai the graphs of mobius with matrices of four bits in blocks of
32, as ONNX Runtime's own tool rounds them. These two have virtual environments of their own in WORK, since they need
versions of transformers that exclude each other. Needs 20 GB of memory and 25 GB of disk on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import FULL_SPEED, NEW_TOKENS, OURS, THEIRS, machine, median, wait_for_quiet
from benchmarks.synthetic import write
from benchmarks.synthetic_configs import config
from benchmarks.synthetic_tokenizer import write_tokenizer
from edge_runtime.export import export_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LITERT, GENAI = "LiteRT-LM int4", "onnxruntime-genai int4"
LAYERS, TOWER_LAYERS = 10, 1
SCRIPT = Path(__file__).with_name("peers_genai.py")
PACKAGES = {
    LITERT: ("litert-lm==0.18.1", "litert-torch==0.10.0", "torch==2.13.0", "transformers==5.23.0"),
    GENAI: (
        "mobius-onnx==0.1.0",
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "torch==2.13.0",
        "transformers==5.12.1",
    ),
}
_FIGURES = {"prefill": "Prefill speed", "decode": "Decode speed", "load_s": "Init time"}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_cut", description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, help="folder for models and environments")
    parser.add_argument("result", type=Path, help="JSON to write")
    parser.add_argument("--prompt", type=int, default=1024, metavar="N", help="tokens to read (default 1024)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--tokenizer", default="gemma3", metavar="gemma3|FOLDER", help="as for benchmarks.synthetic")
    parser.add_argument("--most-busy", type=float, default=0.1, metavar="SHARE", help="of all processors (default 0.1)")
    args = parser.parse_args(argv)
    os.environ.setdefault(*FULL_SPEED)
    work = args.work.resolve()
    make(work, args.tokenizer, args.prompt)
    runners = commands(work, args.prompt, args.threads)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for run in range(args.runs + 1):  # the first warms up
        for name, runner in runners.items():
            wait_for_quiet(args.most_busy)
            rows[name].append(runner())
            print(f"run {run}, {name}: {json.dumps(rows[name][-1])}", file=sys.stderr, flush=True)
    result = {"prompt": args.prompt, "threads": args.threads, "machine": machine(), "rows": rows}
    args.result.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result))


def make(work: Path, tokenizer: str, prompt: int) -> None:
    """What is missing of checkpoint and models."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint"
    if not checkpoint.exists():
        settings = config("e2b", layers=LAYERS)
        settings["vision_config"]["num_hidden_layers"] = settings["audio_config"]["num_hidden_layers"] = TOWER_LAYERS
        write(checkpoint, settings)
        write_tokenizer(checkpoint, tokenizer)
    if not (work / "ours").exists():
        export_checkpoint(checkpoint, work / "ours", recipe="int4")
    if not (work / "q4_0.gguf").exists():
        from benchmarks import gguf_synthetic  # noqa: PLC0415 - its package is in the extra `bench`

        settings = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        gguf_synthetic.write(work / "q4_0.gguf", settings, checkpoint)
    if not (work / "litert" / "model.litertlm").exists():
        _make_litert(work, prompt)
    if not (work / "genai").exists():
        python = environment(work, GENAI)
        subprocess.run([python, str(SCRIPT), "make", str(checkpoint), str(work / "genai.part")], check=True)
        (work / "genai.part").rename(work / "genai")


def _make_litert(work: Path, prompt: int) -> None:
    python = environment(work, LITERT)
    # litert-torch imports a schema from TensorFlow, which it does not install; ai-edge-litert has the same.
    lite = work / "shim" / "tensorflow" / "lite" / "python"
    lite.mkdir(parents=True, exist_ok=True)
    for folder in (lite, lite.parent, lite.parent.parent):
        (folder / "__init__.py").touch()
    (lite / "schema_py_generated.py").write_text("from ai_edge_litert.schema_py_generated import *\n", encoding="utf-8")
    command = [
        str(Path(python).with_name("litert-torch")),
        "export_hf",
        f"--model={work / 'checkpoint'}",
        f"--output_dir={work / 'litert'}",
        "--externalize_embedder=True",
        f"--prefill_lengths=[{prompt}]",
        f"--cache_length={prompt + 256}",
        "--quantization_recipe=dynamic_wi4_afp32",
    ]
    variables = {"PYTHONPATH": str(work / "shim"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env={**os.environ, **variables})


def environment(work: Path, name: str) -> str:
    """Path of the Python that has the packages of a peer, installed if need be."""
    folder = work / "venvs" / name.split(maxsplit=1)[0].lower()
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        (folder / "whole").touch()
    return str(python)


def commands(work: Path, prompt: int, threads: int) -> dict[str, Callable[[], dict[str, float]]]:
    """By peer what makes one run in a process of its own and gives its figures."""

    def ours(model: Path) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.peers", str(work), "-", "--worker", str(model)]
        found = _json([*command, "--prompts", str(prompt), "--threads", str(threads)])
        figures = {**found, **found["prompts"][str(prompt)]}
        return {key: figures[key] for key in ("prefill", "decode", "load_s", "peak_mb")}

    def genai() -> dict[str, float]:
        sizes = [str(prompt), str(NEW_TOKENS), str(threads)]
        return _json([environment(work, GENAI), str(SCRIPT), "run", str(work / "genai"), *sizes])

    def litert() -> dict[str, float]:
        command = [str(Path(environment(work, LITERT)).with_name("litert-lm")), "benchmark"]
        command += [str(work / "litert" / "model.litertlm"), "--backend", "cpu", "--cpu-thread-count", str(threads)]
        command += ["-p", str(prompt), "-d", str(NEW_TOKENS), "--max-num-tokens", str(prompt + 256)]
        return litert_figures(*_run(command))

    return {OURS: lambda: ours(work / "ours"), LITERT: litert, THEIRS: lambda: ours(work / "q4_0.gguf"), GENAI: genai}


def litert_figures(text: str, peak_mb: float) -> dict[str, float]:
    """What `litert-lm benchmark` prints, as numbers.

    Raises:
        ValueError: A figure is missing.
    """
    figures = {"peak_mb": peak_mb}
    for key, label in _FIGURES.items():
        found = re.search(rf"{label}:\s+([\d.]+)", text)
        if not found:
            raise ValueError(f"litert-lm says nothing of {key}: {text[-400:]}")
        figures[key] = float(found[1])
    return figures


def _run(command: list[str]) -> tuple[str, float]:
    """What it prints, and its peak of resident memory in MB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout  # noqa: S101 - a pipe was asked for
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text)
    return text, round(usage.ru_maxrss * 1024 / 1e6, 1)


def _json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown: medians, and each against ours."""
    rows = result["rows"]
    lines = [result["machine"], "", f"| {result['prompt']} tokens read, {NEW_TOKENS} written | {' | '.join(rows)} |"]
    lines.append("|---|" + "---:|" * len(rows))
    for label, key in (
        ("reading, tokens/s", "prefill"),
        ("writing, tokens/s", "decode"),
        ("warm load, s", "load_s"),
        ("peak of resident memory, MB", "peak_mb"),
    ):
        cells = []
        for name, runs in rows.items():
            value, mine = median(runs, key), median(rows[OURS], key)
            cells.append(f"{value:.4g}" + ("" if name == OURS else f" ({mine / value:.2f})"))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
