from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import kld_plot

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def _row(maker: str, name: str, bits: float, mean: float) -> dict[str, Any]:
    kld = {"overall": {"mean": mean, "error": mean / 3, "p99": 9 * mean, "p999": 99 * mean, "top1": 0.999}}
    return {"maker": maker, "name": name, "bits_per_weight": bits, "kld": kld}


@pytest.fixture
def result() -> dict[str, Any]:
    rows = [
        _row("llama.cpp", "BF16", 16.0, 1e-8),
        _row("llama.cpp", "Q8_0", 8.5, 1e-6),
        _row("llama.cpp", "Q4_0", 4.5, 1e-4),
        _row("llama.cpp", "Q4_1", 5.0, 2e-4),
        _row("edge-runtime", "int4", 4.4, 5e-5),
        _row("edge-runtime", "fp32", 32.0, 0.0),
    ]
    return {label: {"rows": rows} for label in kld_plot.TITLES}


@pytest.fixture
def drawing(result: dict[str, Any]) -> Element:
    return ET.fromstring(kld_plot.draw(result))


def _all(drawing: Element, tag: str) -> list[Element]:
    return list(drawing.iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def test_every_format_of_ten_bits_or_less_is_named_in_both_panels(drawing: Element) -> None:
    words = [element.text for element in _all(drawing, "text")]
    assert [words.count(name) for name in ("Q8_0", "Q4_0", "int4", "BF16", "fp32")] == [2, 2, 2, 0, 0]
    assert all(title in words for title in kld_plot.TITLES.values())


def test_less_divergence_is_lower_and_more_bits_are_further_right(drawing: Element) -> None:
    place = {}
    for mark in _all(drawing, "rect"):
        for title in mark:
            place[str(title.text).split(":")[0]] = float(mark.attrib["x"]), float(mark.attrib["y"])
    assert place["Q8_0"][0] > place["Q4_1"][0] > place["Q4_0"][0]
    assert place["Q8_0"][1] > place["Q4_0"][1] > place["Q4_1"][1]


def test_the_line_joins_what_nothing_smaller_beats(drawing: Element) -> None:
    lines = [line.attrib["points"].split() for line in _all(drawing, "polyline")]
    assert sorted(len(points) for points in lines) == [1, 1, 2, 2]  # Q4_1 is on neither


def test_the_table_lists_small_formats_first_with_ours_in_bold(result: dict[str, Any]) -> None:
    lines = kld_plot.table(result).splitlines()
    assert len(lines) == 2 * (2 + 6 + 1) - 1
    assert lines[2] == "| **int4** | 4.40 | 5e-05 ± 2e-05 | 0.00045 | 0.005 | 99.90% |"
    assert [line.split("|")[1].strip() for line in lines[3:8]] == [
        "llama.cpp Q4_0",
        "llama.cpp Q4_1",
        "llama.cpp Q8_0",
        "llama.cpp BF16",
        "**fp32**",
    ]
