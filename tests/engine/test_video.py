"""Videos in prompts: pictures with their times, where the tokens for them stand, and what transformers makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.video import load_video
from tests.videos import make_video

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.engine.onnx.engine import OnnxEngine


def asking(*content: Any, **asked: Any) -> Request:
    items = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
    return Request(messages=[{"role": "user", "content": items}], **asked)


def video(path: Path) -> dict[str, Any]:
    return {"type": "video", "video": path}


def shown(engine: OnnxEngine, request: Request) -> str:
    """The prompt as text, each run of soft tokens as one."""
    prompt = engine.prepare(request).prompt
    inside = {at for span in prompt.spans for at in range(span.start + 1, span.start + span.count)}
    ids = [token for at, token in enumerate(prompt.ids) if at not in inside]
    return engine.tokenizer.decode(ids, skip_special=False)


def test_pictures_stand_after_their_times(engine: OnnxEngine, tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", 3)
    text = shown(engine, asking(video(path), "What is it?"))
    frame = "<|image><|video|><image|>"
    assert f"00:00 {frame} 00:01 {frame} 00:02 {frame}What is it?" in text
    spans = engine.prepare(asking(video(path), "What is it?")).prompt.spans
    assert [span.kind for span in spans] == ["video"] * 3


def test_several_videos_images_and_words_in_any_order(engine: OnnxEngine, tmp_path: Path):
    one, two = make_video(tmp_path / "a.mp4", 1), make_video(tmp_path / "b.mp4", 2)
    image = {"type": "image", "image": np.zeros((48, 48, 3), np.uint8)}
    text = shown(engine, asking("First", image, video(one), "then <|video|>", video(two), image, "done"))
    frame = "<|image><|video|><image|>"
    picture = "<|image><|image|><image|>"
    assert f"First{picture}00:00 {frame}then <|video|>00:00 {frame} 00:01 {frame}{picture}done" in text


def test_the_answer_comes(engine: OnnxEngine, tmp_path: Path):
    pieces = list(engine.run(asking(video(make_video(tmp_path / "a.mp4", 2)), "What color?", max_tokens=5)))
    assert pieces[-1].finish_reason in {"stop", "length"}
    usage = pieces[-1].usage
    assert usage is not None
    assert usage["prompt_tokens"] > 2 * 60


def test_a_budget_for_each_picture(engine: OnnxEngine, tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", 2, size=(640, 480))
    small = engine.prepare(asking(video(path), video_tokens=70)).prompt.spans
    large = engine.prepare(asking(video(path), video_tokens=140)).prompt.spans
    assert all(60 <= span.count <= 70 for span in small)
    assert all(120 <= span.count <= 140 for span in large)
    with pytest.raises(EdgeRuntimeError, match="tokens is 3"):
        engine.prepare(asking(video(path), video_tokens=3))


def test_a_long_video_leaves_room_for_words(engine: OnnxEngine, tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", 60, fps=2, size=(64, 48))
    prompt = engine.prepare(asking(video(path), "What is it?", video_tokens=280)).prompt
    assert len(prompt.ids) <= engine.info["context"] * 4 // 5
    assert len(prompt.spans) > 5


@pytest.mark.oracle
def test_prompt_and_logits_are_those_of_transformers(checkpoint: Path, engine: OnnxEngine, tmp_path: Path):
    import torch
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    from tests.engine.oracle import Oracle

    oracle = Oracle(checkpoint)
    path = make_video(tmp_path / "a.mp4", 3)
    request = asking(video(path), "What color is it?")
    frames = load_video(path)
    found = oracle.images(images=[frame.image for frame in frames], return_tensors="pt")
    oracle.tokenizer.add_special_tokens({"additional_special_tokens": ["<|video|>"]})
    names = SimpleNamespace(**oracle.tokenizer.special_tokens_map, video_token="<|video|>")
    metadata = SimpleNamespace(fps=1, timestamps=[frame.seconds for frame in frames])
    count = int(found["num_soft_tokens_per_image"][0])
    given = {"num_soft_tokens_per_video": [count], "video_metadata": [metadata]}
    text = oracle.tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
    text = text.replace("<|video|>", Gemma4Processor.replace_video_token(names, given, 0))
    ids = oracle.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    prepared = engine.prepare(request)
    assert list(prepared.prompt.ids) == ids[0].tolist()
    with torch.no_grad():
        theirs = oracle.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=found["pixel_values"],
            video_position_ids=found["image_position_ids"],
            num_frames_per_video=torch.tensor([len(frames)]),
        ).logits[0, -1]
    generator = engine.prefill(prepared)
    try:
        while True:
            next(generator)
    except StopIteration as end:
        ours = end.value[-1]
    assert np.abs(ours - theirs.float().numpy()).max() < 1e-3
