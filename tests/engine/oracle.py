"""What transformers answers to a prompt: its tokenizer, template, processors, model, greedy `generate`, in float32."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.engine.prompts import Case


class Oracle:
    """A checkpoint in transformers.

    The parts of `Gemma4Processor` are used one by one, because the class as a whole wants torchvision for video.
    """

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import (
            AutoTokenizer,
            Gemma4AudioFeatureExtractor,
            Gemma4ForConditionalGeneration,
            Gemma4ImageProcessorPil,
        )

        torch.set_num_threads(1)
        config = json.loads((checkpoint / "processor_config.json").read_text())
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.audio = Gemma4AudioFeatureExtractor(**config["feature_extractor"])
        self.images = Gemma4ImageProcessorPil(max_soft_tokens=config["image_processor"]["max_soft_tokens"])
        self.model = Gemma4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def inputs(self, case: Case) -> dict[str, Any]:
        """What the processor would hand to the model."""
        from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

        names = SimpleNamespace(**self.tokenizer.special_tokens_map)
        prompt = self.tokenizer.apply_chat_template(
            case.messages,
            tools=case.tools or None,
            enable_thinking=case.think,
            add_generation_prompt=True,
            tokenize=False,
        )
        items = [item for m in case.messages if isinstance(m.get("content"), list) for item in m["content"]]
        tensors: dict[str, Any] = {}
        if pictures := [item["image"] for item in items if item["type"] == "image"]:
            found = self.images(images=pictures, return_tensors="pt")
            tensors |= {"pixel_values": found["pixel_values"], "image_position_ids": found["image_position_ids"]}
            for index in range(len(pictures)):
                soft = Gemma4Processor.replace_image_token(names, found, index)
                prompt = prompt.replace(names.image_token, soft.replace(names.image_token, "\0"), 1)
            prompt = prompt.replace("\0", names.image_token)
        if clips := [item["audio"] for item in items if item["type"] == "audio"]:
            found = self.audio(clips, return_tensors="pt")
            tensors |= {key: found[key] for key in ("input_features", "input_features_mask")}
            for index in range(len(clips)):
                soft = Gemma4Processor.replace_audio_token(names, found, index)
                prompt = prompt.replace(names.audio_token, soft.replace(names.audio_token, "\0"), 1)
            prompt = prompt.replace("\0", names.audio_token)
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "attention_mask": self.torch.ones_like(ids), **tensors}

    def answer(self, case: Case, max_tokens: int) -> tuple[list[int], list[int], NDArray[np.float32]]:
        """Prompt ids, greedy ids with the one that ended the answer, and the logits of the first step, `[vocab]`."""
        inputs = self.inputs(case)
        with self.torch.no_grad():
            found = self.model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        length = inputs["input_ids"].shape[1]
        return (
            inputs["input_ids"][0].tolist(),
            found.sequences[0, length:].tolist(),
            np.asarray(found.logits[0][0].float().numpy()),
        )
