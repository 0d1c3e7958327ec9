"""How fast MatMulNBits is, by bits and block: `python -m benchmarks.kernels`.

Prints the best time of one multiplication in milliseconds, for one token and for 256, on one thread. The shape is that
of Gemma 4 E2B's wide MLP. What is slow here has no kernel of its own and is not worth a place in a recipe.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

BITS, BLOCKS, TOKENS = (2, 4, 8), (16, 32, 64, 128), (1, 256)
SLOW_S = 0.1  # a kernel that takes longer for one token is not tried again


def session(bits: int, block: int, width: int, count: int) -> Any:
    """A graph of one multiplication [M, width] by [width, count], random weights."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (count, width // block, block * bits // 8), dtype=np.uint8)
    scales = np.full((count, width // block), 1e-3, np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weights", "scales"],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=count,
        bits=bits,
        block_size=block,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", count])],
        [numpy_helper.from_array(packed, "weights"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(width: int, count: int, rounds: int) -> dict[tuple[int, int, int], float]:
    """Seconds by bits, block and tokens: the best of `rounds`, which go through all in turn."""
    sessions = {(bits, block): session(bits, block, width, count) for bits in BITS for block in BLOCKS}
    best: dict[tuple[int, int, int], float] = {}
    for _ in range(rounds):
        for (bits, block), run in sessions.items():
            if best.get((bits, block, 1), 0.0) > SLOW_S:
                continue
            for tokens in TOKENS:
                x = np.ones((tokens, width), np.float32)
                begun = time.perf_counter()
                run.run(None, {"x": x})
                seconds = time.perf_counter() - begun
                best[bits, block, tokens] = min(seconds, best.get((bits, block, tokens), seconds))
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Times MatMulNBits by bits and block.")
    parser.add_argument("--width", type=int, default=1536, help="K (default: %(default)s)")
    parser.add_argument("--count", type=int, default=12288, help="N (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    best = measure(args.width, args.count, args.rounds)
    print("bits  " + "".join(f"block {block:<14}" for block in BLOCKS))
    for bits in BITS:
        cells = [[f"{1e3 * best[bits, block, tokens]:8.2f}" for tokens in TOKENS] for block in BLOCKS]
        print(f"{bits:4}  " + "    ".join("".join(cell) for cell in cells))


if __name__ == "__main__":
    main()
