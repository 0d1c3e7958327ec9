"""`edge-runtime verify`: is this bundle whole and unchanged?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse

HELP = (
    "Check every byte of a bundle against its manifest: format version, sizes, SHA-256, geometry. A damaged file is "
    "named, and where it is damaged."
)
EXAMPLE = "edge-runtime verify gemma-4-E2B-int4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument("--json", action="store_true", help='print {"bundle", "ok", "problems"}')


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if the bundle is sound, 2 with a line per problem if not."""
    from edge_runtime.bundle.manifest import read_manifest, verify
    from edge_runtime.cli._bar import Bar

    bundle: Path = args.bundle
    if not bundle.exists():
        raise EdgeRuntimeError(f"{bundle} does not exist")
    bar = Bar()
    try:
        problems = verify(bundle, lambda done, total: bar.show("bytes checked", done, total))
    finally:
        bar.clear()
    if args.json:
        print(json.dumps({"bundle": str(bundle), "ok": not problems, "problems": problems}))
    elif not problems:
        manifest = read_manifest(bundle)
        size = sum(entry.size for entry in manifest.files.values())
        print(f"{bundle}: ok ({len(manifest.files)} files, {size / 1e6:.1f} MB, {manifest.recipe})")
    for problem in problems:
        print(f"edge-runtime: {problem}", file=sys.stderr)
    return 2 if problems else 0
