"""ONNX Runtime's Linux wheels report to their maker unless told not to. They are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Whatever makes onnxruntime think that it runs in CI, where it keeps quiet by itself.
CI_VARIABLES = (
    "CI",
    "GITHUB_ACTIONS",
    "TF_BUILD",
    "BUILD_BUILDID",
    "GITLAB_CI",
    "TRAVIS",
    "CIRCLECI",
    "APPVEYOR",
    "JENKINS_URL",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "CODEBUILD_BUILD_ID",
    "BITBUCKET_BUILD_NUMBER",
    "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI",
)
RUN_A_SESSION = """
import edge_runtime
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
assert session.run(None, {"x": np.ones(1, np.float32)})[0][0] == -1
"""


def run(code: str, home: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES and "TELEMETRY" not in name}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=True).stdout


def test_a_session_leaves_no_file_at_home(tmp_path):
    run(RUN_A_SESSION, tmp_path)
    assert [str(path) for path in tmp_path.rglob("*")] == []


def test_importing_the_package_is_light_and_opens_no_device(tmp_path):
    heavy = (
        "{'onnxruntime', 'onnx', 'sounddevice', 'soundfile', 'numpy', 'PIL', 'tokenizers', 'torch', 'transformers',"
        " 'huggingface_hub'}"
    )
    loaded = run(f"import sys, edge_runtime; print(sorted({heavy} & set(sys.modules)))", tmp_path)
    assert loaded.strip() == "[]"


def test_the_switches_are_set_for_children_too(tmp_path):
    names = "('ORT_DISABLE_TELEMETRY', 'ORT_TELEMETRY_DISABLED', 'HF_HUB_DISABLE_TELEMETRY')"
    shown = run(f"import os, edge_runtime; print([os.environ.get(name) for name in {names}])", tmp_path)
    assert shown.strip() == "['1', '1', '1']"
