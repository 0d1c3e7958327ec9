"""The wait after the last word: heard meanwhile and encoded afterwards, the built-in model says the same."""

from __future__ import annotations

import numpy as np

from benchmarks.listening import curve, sound
from edge_runtime import builtin
from edge_runtime.engine.loading import load


def test_sounds_differ_and_say_the_same():
    one, other = sound(0.5, 0), sound(0.5, 1)
    assert len(one) == len(other) == 8000
    assert 0 < np.abs(one - other).max() < 1e-3


def test_the_built_in_model_says_the_same_either_way():
    with load(builtin.bundle_path(), threads=1) as model:
        head, _, line = curve(model, [3.0], runs=1)
    assert head.count("|") == line.count("|") == 5
    length, meanwhile, after, same = (part.strip() for part in line.strip("|").split("|"))
    assert (length, same) == ("3", "yes")
    assert float(meanwhile) > 0
    assert float(after) > 0
