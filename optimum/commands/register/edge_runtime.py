"""Adds `optimum-cli export edge-runtime`.

optimum imports every file of its namespace optimum.commands.register, whichever package brought it. No folder on the
way here may have an __init__.py: it would hide optimum itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    from argparse import ArgumentParser


class EdgeRuntimeExportCommand(BaseOptimumCLICommand):
    """`edge-runtime export` under optimum's name for it."""

    COMMAND = CommandInfo(name="edge-runtime", help="Export Gemma 4 to a bundle of edge-runtime, without torch.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options of `edge-runtime export`; the checkpoint is --model, as optimum has it."""
        from edge_runtime.cli import export  # noqa: PLC0415  optimum-cli starts with every command

        parser.description = export.HELP
        parser.add_argument("-m", "--model", required=True, dest="checkpoint", help=export.CHECKPOINT_HELP)
        export.add_options(parser)

    def run(self) -> None:
        """Exports; what is wrong is one line and exit status 2, as with `edge-runtime`."""
        from edge_runtime.cli import export, main  # noqa: PLC0415

        sys.exit(main.guarded(lambda: export.run(self.args)))


REGISTER_COMMANDS = [(EdgeRuntimeExportCommand, ExportCommand)]
