"""Where the built-in model is: its checkpoint travels with the program, its bundle is made once on this machine."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from edge_runtime.bundle.manifest import is_bundle
from edge_runtime.errors import EdgeRuntimeError

NAME = "nano"
RECIPE = "int4"
_PACKAGE = Path(__file__).parent


def checkpoint_path() -> Path:
    """The built-in checkpoint: inside the package when installed, else in the checkout.

    Raises:
        EdgeRuntimeError: There is none.
    """
    for folder in (_PACKAGE / "models" / "nano", _PACKAGE.parent / "models" / "nano" / "checkpoint"):
        if (folder / "config.json").is_file():
            return folder
    raise EdgeRuntimeError("this installation has no built-in model: give a bundle folder")


def heldout_path() -> Path:
    """A few held-out prompts of every kind with their answers: evaluation sets, as `eval` reads them.

    Raises:
        EdgeRuntimeError: There are none.
    """
    for folder in (_PACKAGE / "models" / "nano-heldout", _PACKAGE.parent / "models" / "nano" / "heldout"):
        if folder.is_dir():
            return folder
    raise EdgeRuntimeError("this installation has no prompts of its own: give a folder with --prompts")


def cache_path() -> Path:
    """The folder for what can be made anew: `$EDGE_RUNTIME_CACHE`, else `edge-runtime` in the user's cache."""
    if own := os.environ.get("EDGE_RUNTIME_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-runtime"


def bundle_path() -> Path:
    """The bundle of the built-in model, exported on first use (some seconds).

    Two processes may come here at once: each exports beside the place, the first to finish wins.

    Raises:
        EdgeRuntimeError: There is no built-in model, or the cache cannot be written.
    """
    checkpoint = checkpoint_path()
    bundle = cache_path() / f"{NAME}-{RECIPE}-{_digest(checkpoint)}"
    if is_bundle(bundle):
        return bundle
    from edge_runtime.export.pipeline import export_checkpoint  # noqa: PLC0415 - only on first use

    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        drafter = checkpoint / "drafter"
        export_checkpoint(checkpoint, bundle, recipe=RECIPE, drafter=drafter if drafter.is_dir() else None)
    except OSError as error:
        raise EdgeRuntimeError(f"{bundle.parent}: {error.strerror or error}") from None
    except EdgeRuntimeError:
        if not is_bundle(bundle):
            raise
    return bundle


def is_own_bundle(path: Path) -> bool:
    """Whether `path` is one that `bundle_path` made, now or for another version of the program."""
    return re.fullmatch(rf"{NAME}-{RECIPE}-[0-9a-f]{{12}}", path.name) is not None


def _digest(checkpoint: Path) -> str:
    """Changes with the checkpoint and with the code that makes bundles, so that no stale bundle is ever used."""
    digest = hashlib.blake2b(digest_size=6)
    sources = [path for part in ("export", "bundle", "gemma") for path in (_PACKAGE / part).glob("*.py")]
    for path in (*sorted(path for path in checkpoint.rglob("*") if path.is_file()), *sorted(sources)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
