"""Checkpoint -> bundle, without torch: reads safetensors, rounds weights, writes ONNX graphs and tables."""

from __future__ import annotations

from edge_runtime.export.pipeline import ExportReport, export_checkpoint

__all__ = ["ExportReport", "export_checkpoint"]
