"""The generated pictures: same seed, same picture; the labels say what the answers say."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import ImageFont

from models.nano.training import image_canvas, image_devices, image_shapes, image_text, image_words, images

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAINING = Path(images.__file__).parent
ANSWERS = {
    "count": "[0-8]",
    "exists": r"(Yes|No)\.",
    "color": "(" + "|".join(name.capitalize() for name in images.COLORS) + r")\.",
    "shape": "(" + "|".join(name.capitalize() for name in images.SHAPES) + r")\.",
    "position": "|".join(re.escape(answer) for answer in image_words.POSITIONS),
    "word": "[A-Z]+( [A-Z0-9]+)?",
    "digits": r"\d{1,5}|\$\d{1,3}|\d{1,2}:\d\d",
    "dial": r"(\d|[1-9]\d|100)",
    "tank": r"(0|[1-9]0|100) percent\.",
    "door": r"(Open|Closed|Yes|No)\.",
    "window": r"(Open|Closed|Yes|No)\.",
    "lamp": r"(On|Off|Yes|No)\.",
}


@pytest.fixture(autouse=True, scope="module")
def _fonts() -> Iterator[None]:
    """Where the fonts are not installed, the one inside Pillow stands in for all of them."""
    try:
        image_text.font_paths()
    except FileNotFoundError:
        with pytest.MonkeyPatch.context() as patch:
            for module in (image_text, image_devices):
                patch.setattr(module, "font", lambda _name, size: ImageFont.load_default(size))
            yield
    else:
        yield


@pytest.fixture(scope="module")
def samples() -> list[images.Sample]:
    return [images.sample_at(9, index, heldout=index % 2 == 1) for index in range(240)]


def test_the_same_place_gives_the_same_picture() -> None:
    for index in range(12):
        first, second = images.sample_at(3, index), images.sample_at(3, index)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.questions == second.questions
        assert first.scalars == second.scalars
        for name in images.LABELS:
            np.testing.assert_array_equal(first.labels[name], second.labels[name])


def test_heldout_pictures_are_others() -> None:
    same = [images.sample_at(3, i).questions == images.sample_at(3, i, heldout=True).questions for i in range(20)]
    assert sum(same) <= 2


def test_sizes_need_no_resizing(samples: list[images.Sample]) -> None:
    assert {sample.image.size for sample in samples} == set(images.SIZES)
    for sample in samples:
        width, height = sample.image.size
        assert sample.image.mode == "RGB"
        assert width % 48 == height % 48 == 0
        assert sample.grid == (width // 16, height // 16)
        assert set(sample.labels) == set(images.LABELS)
        for labels in sample.labels.values():
            assert labels.shape == sample.grid[::-1]
            assert labels.dtype == np.uint8


def test_questions_and_answers_belong_to_the_domain(samples: list[images.Sample]) -> None:
    for sample in samples:
        assert sample.questions
        for question, answer, group in sample.questions:
            assert question in image_words.QUESTION_GROUPS[group]
            assert re.fullmatch(ANSWERS[group], answer), (question, answer)
    assert {group for sample in samples for _, _, group in sample.questions} == set(image_words.QUESTION_GROUPS)


def test_questions_can_be_spoken() -> None:
    assert len(images.QUESTIONS) == len(set(images.QUESTIONS))
    assert all(re.fullmatch("[A-Z][a-z ]+[?.]", question) for question in images.QUESTIONS)
    assert "Is there an orange star?" in images.QUESTIONS


def test_classes_stay_in_range(samples: list[images.Sample]) -> None:
    most = {
        "char": len(images.CHARS), "char_start": 1, "shape": len(images.SHAPES), "color": len(images.COLORS),
        "center": 1, "other": len(images.PARTS),
    }  # fmt: skip
    for name, limit in most.items():
        seen = np.unique(np.concatenate([sample.labels[name].reshape(-1) for sample in samples]))
        assert seen.max() <= limit
        assert len(seen) > limit * 0.6


def test_every_shape_has_one_centre(samples: list[images.Sample]) -> None:
    for sample in samples:
        labels = sample.labels
        assert labels["center"].sum() == max(0, sample.scalars["count"])
        np.testing.assert_array_equal(labels["shape"] > 0, labels["color"] > 0)
        assert np.all(labels["shape"][labels["center"] == 1] > 0)


def test_counts_equal_the_labels(samples: list[images.Sample]) -> None:
    checked = 0
    for sample in samples:
        at = sample.labels["center"] == 1
        things = list(zip(sample.labels["color"][at].tolist(), sample.labels["shape"][at].tolist(), strict=True))
        for question, answer, group in sample.questions:
            if group not in {"count", "exists"}:
                continue
            color = next((i for i, name in enumerate(images.COLORS, 1) if f" {name} " in question), 0)
            shape = next((i for i, name in enumerate(images.SHAPES, 1) if f" {name}" in question), 0)
            count = sum(color in {0, c} and shape in {0, s} for c, s in things)
            assert answer == (str(count) if group == "count" else "Yes." if count else "No."), question
            checked += 1
    assert checked > 100


def test_places_and_names_equal_the_labels(samples: list[images.Sample]) -> None:
    checked = 0
    for sample in samples:
        rows, columns = np.nonzero(sample.labels["center"])
        for question, answer, group in sample.questions:
            if group not in {"position", "color", "shape"}:
                continue
            color = next((i for i, name in enumerate(images.COLORS, 1) if name in question.rstrip("?").split()), 0)
            shape = next((i for i, name in enumerate(images.SHAPES, 1) if name in question.rstrip("?").split()), 0)
            fitting = [
                (row, column)
                for row, column in zip(rows, columns, strict=True)
                if color in {0, sample.labels["color"][row, column]}
                and shape in {0, sample.labels["shape"][row, column]}
            ]
            assert len(fitting) == 1, question
            row, column = fitting[0]
            if group == "position":
                across, down = int((column + 0.5) / sample.grid[0] * 3), int((row + 0.5) / sample.grid[1] * 3)
                assert answer == image_words.POSITIONS[down * 3 + across]
            elif group == "color":
                assert answer == image_words.sentence(images.COLORS[sample.labels["color"][row, column] - 1])
            else:
                assert answer == image_words.sentence(images.SHAPES[sample.labels["shape"][row, column] - 1])
            checked += 1
    assert checked > 60


def test_glyph_starts_spell_the_answer(samples: list[images.Sample]) -> None:
    checked = 0
    for sample in samples:
        _, answer, group = sample.questions[0]
        starts = sample.labels["char_start"] == 1
        if group not in {"word", "digits"}:
            assert not starts.any()
            continue
        assert sorted(images.CHARS[label - 1] for label in sample.labels["char"][starts]) == sorted(
            answer.replace(" ", "")
        )
        if " " not in answer:
            # One line: read it from left to right.
            found = sorted(zip(*np.nonzero(starts), strict=True), key=lambda cell: cell[1])
            assert "".join(images.CHARS[sample.labels["char"][cell] - 1] for cell in found) == answer
        checked += 1
    assert checked > 50


def test_devices_agree_with_their_labels(samples: list[images.Sample]) -> None:
    part = {name: index for index, name in enumerate(images.PARTS, 1)}
    seen = set()
    for sample in samples:
        here = set(np.unique(sample.labels["other"]).tolist())
        for question, answer, group in sample.questions:
            if group == "dial":
                assert sample.scalars["dial"] * 5 == int(answer)
                assert {part["dial face"], part["dial needle"], part["dial tip"], part["dial hub"]} <= here
                assert (sample.labels["other"] == part["dial tip"]).sum() == 1
            elif group == "tank":
                level = sample.scalars["tank"]
                assert answer == f"{level * 10} percent."
                full, empty = ((sample.labels["other"] == part[name]).sum() for name in ("tank fill", "tank empty"))
                assert abs(full / (full + empty) - level / 10) < 0.08
            elif group in {"door", "window", "lamp"}:
                on = part["lamp on" if group == "lamp" else f"{group} opening"] in here
                states = image_words.STATES[group]
                state = states[0] if on else states[1]
                guess = question.rstrip("?").split()[-1]
                either = " or " in question
                assert answer == (image_words.sentence(state) if either else "Yes." if guess == state else "No.")
            else:
                continue
            seen.add(group)
    assert seen == {"dial", "tank", "door", "window", "lamp"}


def test_the_needle_points_at_the_value() -> None:
    for seed in range(30):
        canvas = image_canvas.Canvas((384, 384), (200, 200, 200))
        _, scalars = image_devices.draw_dial(canvas, random.Random(seed), heldout=False)
        labels = canvas.labels()["other"]
        tip, hub = (np.argwhere(labels == images.PARTS.index(name) + 1)[0] for name in ("dial tip", "dial hub"))
        up, right = hub[0] - tip[0], tip[1] - hub[1]
        wrong = 225 - np.degrees(np.arctan2(up, right)) - 2.7 * scalars["dial"] * 5
        # Patches are coarse: less than one step of 13.5 degrees.
        assert abs((wrong + 180) % 360 - 180) < 13.5


@pytest.mark.parametrize("tilt", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("scale", [1, 2])
def test_labels_lie_on_what_was_drawn(tilt: float, scale: int) -> None:
    canvas = image_canvas.Canvas((432, 336), (255, 255, 255), tilt, scale)
    thing = image_shapes.Thing("red", "circle", 80.0, 250.0, 40.0)
    image_shapes.draw_shape(canvas, random.Random(0), thing)
    block = image_text.segment_line("8", 90, scale)
    canvas.text(block, 300, 60, (0, 0, 0))
    pixels = np.asarray(canvas.image()).astype(int)
    middles = pixels[8::16, 8::16]
    labels = canvas.labels()
    red = (middles[..., 0] > 150) & (middles[..., 1] < 120)
    assert (red == (labels["shape"] == 1)).mean() > 0.995
    dark = pixels.sum(2) < 200
    rows, columns = np.nonzero(dark)
    row, column = np.argwhere(labels["char_start"] == 1)[0]
    # The start mark lies on the middle of the ink, to half a patch.
    assert abs(rows.mean() - (row * 16 + 8)) <= 9
    assert abs(columns.mean() - (column * 16 + 8)) <= 9
    assert set(np.unique(labels["char"])) == {0, images.CHARS.index("8") + 1}


def test_position_is_silent_when_in_doubt() -> None:
    canvas = image_canvas.Canvas((384, 384), (0, 0, 0))
    assert image_shapes.position(canvas, 64, 64) == "Top left."
    assert image_shapes.position(canvas, 192, 192) == "Center."
    assert image_shapes.position(canvas, 320, 190) == "Middle right."
    assert image_shapes.position(canvas, 128, 64) is None


def test_shapes_do_not_touch() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        canvas = image_canvas.Canvas(rng.choice(images.SIZES), (128, 128, 128))
        place = image_shapes._in_cells if seed % 2 else image_shapes._anywhere
        spots = place(rng, canvas, rng.randint(1, 8))
        for index, (x, y, radius) in enumerate(spots):
            assert radius * 2 >= 45
            for a, b, other in spots[:index]:
                # Half the boxes' width apart along one axis at least.
                assert max(abs(x - a), abs(y - b)) > (radius + other) * 0.85


def test_pack_pads_and_keeps_the_order(samples: list[images.Sample]) -> None:
    few = samples[:12]
    arrays = images.pack(few)
    assert arrays["patches"].shape == (12, 576, 768)
    assert arrays["patches"].dtype == np.uint8
    for index, sample in enumerate(few):
        width, height = sample.grid
        assert arrays["grid"][index].tolist() == [width, height]
        whole = arrays["patches"][index, : width * height].reshape(height, width, 16, 16, 3).transpose(0, 2, 1, 3, 4)
        np.testing.assert_array_equal(whole.reshape(height * 16, width * 16, 3), np.asarray(sample.image))
        assert not arrays["patches"][index, width * height :].any()
        for name in images.LABELS:
            np.testing.assert_array_equal(arrays[name][index, : width * height], sample.labels[name].reshape(-1))
            assert not arrays[name][index, width * height :].any()
        for name in images.SCALARS:
            assert arrays[name].dtype == np.int16
            assert arrays[name][index] == sample.scalars[name]


def test_a_shard_is_complete_once_its_json_is_there(tmp_path: Path) -> None:
    images.write_shard(tmp_path, 4, 5, heldout=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0004.json", "0004.npz"]
    questions = json.loads((tmp_path / "0004.json").read_text())
    expected = [images.sample_at(4, index, heldout=True) for index in range(5)]
    assert questions == [[list(question) for question in sample.questions] for sample in expected]
    with np.load(tmp_path / "0004.npz") as arrays:
        np.testing.assert_array_equal(arrays["patches"], images.pack(expected)["patches"])


def test_runs_from_its_own_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import images; print(len(images.QUESTIONS))"]
    done = subprocess.run(command, cwd=TRAINING, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(images.QUESTIONS)


def test_missing_fonts_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image_text, "HELDOUT_FONTS", ["Nowhere.ttf"])
    with pytest.raises(FileNotFoundError, match=r"Nowhere\.ttf.*apt-get install"):
        image_text.font_paths.__wrapped__()


def test_glyphs_never_share_a_patch() -> None:
    for name in image_text.TRAIN_FONTS[:6]:
        block = image_text.fit(
            functools.partial(image_text.font_line, name),
            ["FILLING"], 32, (340, 200), 1,
        )  # fmt: skip
        centers = [glyph.center for glyph in block.glyphs]
        assert min(b - a for a, b in itertools.pairwise(centers)) >= image_text.MIN_PITCH - 0.01


@pytest.mark.oracle
def test_patches_equal_the_stock_image_processor(samples: list[images.Sample]) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    processor = Gemma4ImageProcessorPil(max_soft_tokens=70, patch_size=16, pooling_kernel_size=3)
    for sample in samples[:16]:
        pixels = np.asarray(processor(sample.image, return_tensors="np")["pixel_values"])[0]
        ours = images.patches(sample.image)
        np.testing.assert_allclose(pixels[: len(ours)], ours / 255.0, atol=1e-6)
