"""Code as the Gemma 4 model card shows it, with nothing changed but where the loaders come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.hf import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor
from tests.perception.sounds import speech

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    processor = AutoProcessor.from_pretrained()
    model = AutoModelForCausalLM.from_pretrained(dtype="auto", device_map="auto")
    return processor, model


def test_text(loaded):
    processor, model = loaded
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Who are you?"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert text.startswith("<bos><|turn>system\nYou are a helpful assistant.<turn|>")
    inputs = processor(text=text, return_tensors="pt").to(model.device)
    input_len = inputs["input_ids"].shape[-1]
    outputs = model.generate(**inputs, max_new_tokens=1024)
    response = processor.decode(outputs[0][input_len:], skip_special_tokens=False)
    assert response.endswith("<turn|>")
    message = processor.parse_response(response)
    assert message["role"] == "assistant"
    assert "Nano" in message["content"]
    assert processor.batch_decode(outputs[:, input_len:], skip_special_tokens=True) == [message["content"]]


def test_the_two_ways_to_a_prompt_are_one(loaded):
    processor, _ = loaded
    messages = [{"role": "user", "content": "Who are you?"}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert np.array_equal(processor(text=text).input_ids, ids)
    assert ids.dtype == np.int64
    assert ids.ndim == 2


def test_audio(loaded, tmp_path: Path):
    import soundfile

    soundfile.write(tmp_path / "journal.wav", speech("Turn on the kitchen light."), 16_000)
    processor, model = loaded
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": str(tmp_path / "journal.wav")},
                {"type": "text", "text": "Transcribe the audio."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    input_len = inputs["input_ids"].shape[-1]
    outputs = model.generate(**inputs, max_new_tokens=512)
    response = processor.decode(outputs[0][input_len:], skip_special_tokens=False)
    assert "light" in processor.parse_response(response)["content"]


def test_images(loaded, tmp_path: Path):
    Image.new("RGB", (640, 480), (200, 30, 30)).save(tmp_path / "a.png")
    processor = loaded[0]
    model = AutoModelForMultimodalLM.from_pretrained(None, dtype="auto", device_map="auto").eval()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": str(tmp_path / "a.png")},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    outputs = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert 0 < outputs.shape[-1] - inputs["input_ids"].shape[-1] <= 8


def test_function_calling_and_thinking(loaded):
    processor, model = loaded

    def set_light(room: str, state: str) -> None:
        """Switch a light

        Args:
            room: The room
            state: On or off (choices: ["on", "off"])
        """

    messages = [{"role": "user", "content": "Turn on the kitchen light."}]
    inputs = processor.apply_chat_template(
        messages, tools=[set_light], tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=True
    )
    outputs = model.generate(**inputs, max_new_tokens=256)
    message = processor.parse_response(outputs[0][inputs["input_ids"].shape[-1] :])
    call = message["tool_calls"][0]["function"]
    assert call == {"name": "set_light", "arguments": {"room": "kitchen", "state": "on"}}


def test_streaming(loaded):
    processor, model = loaded

    class Streamer:
        def __init__(self) -> None:
            self.got: list[int] = []
            self.ended = False

        def put(self, value: np.ndarray) -> None:
            self.got += value.reshape(-1).tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    inputs = processor.apply_chat_template([{"role": "user", "content": "Who are you?"}], return_dict=True)
    outputs = model.generate(**inputs, max_new_tokens=5, streamer=streamer)
    assert streamer.ended
    assert streamer.got == outputs[0].tolist()


def test_what_is_not_right(loaded):
    processor, model = loaded
    with pytest.raises(EdgeRuntimeError, match="what the processor gave"):
        model.generate(input_ids=np.zeros((1, 3), np.int64))
    with pytest.raises(EdgeRuntimeError, match="no such folder"):
        AutoProcessor.from_pretrained("none")
    with pytest.raises(EdgeRuntimeError, match="unknown role"):
        processor.apply_chat_template([{"role": "nobody", "content": "x"}])
