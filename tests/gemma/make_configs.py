"""Writes tests/gemma/configs anew: what the installed transformers makes of the published config.json files.

pip install transformers==5.12.1  # then 5.15.1, which brought per_layer_config, and 5.23.0
python -m tests.gemma.make_configs
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import transformers
from transformers import Gemma4AssistantConfig, Gemma4Config

from benchmarks.synthetic_configs import assistant_config, config

FOLDER = Path(__file__).parent / "configs"


def main() -> None:
    configs = {model: Gemma4Config.from_dict(config(model)) for model in ("e2b", "e4b", "26b-a4b")}
    configs["e2b-assistant"] = Gemma4AssistantConfig.from_dict(assistant_config("e2b"))
    for name, settings in configs.items():
        with tempfile.TemporaryDirectory() as temporary:
            settings.save_pretrained(temporary)
            text = (Path(temporary) / "config.json").read_text(encoding="utf-8")
        (FOLDER / f"{name}-{transformers.__version__}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
