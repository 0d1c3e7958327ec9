"""Runs models. One small `Engine` protocol; the onnx engine is its first implementation."""
