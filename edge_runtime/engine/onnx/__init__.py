"""The engine on ONNX Runtime: sessions, KV cache, prefill and decode steps, encoders."""
