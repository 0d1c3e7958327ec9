from __future__ import annotations

import hashlib
import threading
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import (
    BLOCK,
    PAGE,
    Checksums,
    FileEntry,
    Measured,
    Meter,
    measure,
    measure_all,
    over_files,
    write_checksums,
)
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
FILES = {"a.bin": (PAGE, RNG.bytes(5 * PAGE + 100)), "b.onnx_data": (BLOCK, RNG.bytes(3_000_000)), "c": (BLOCK, b"")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (_, data) in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def opened(folder: Path) -> Checksums:
    measured = {name: measured_as(block, data) for name, (block, data) in FILES.items()}
    entry = write_checksums(folder, measured)
    return Checksums.open(folder, {name: m.entry for name, m in measured.items()} | {names.CHECKSUMS: entry})


def measured_as(block: int, data: bytes) -> Measured:
    meter = Meter(block)
    meter.update(data)
    return meter.result()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_file_is_measured_alike_in_any_pieces(folder: Path) -> None:
    block, data = FILES["b.onnx_data"]
    meter = Meter(block)
    for start in range(0, len(data), 70_001):
        meter.update(data[start : start + 70_001])
    whole, read = meter.result(), measure(folder / "b.onnx_data")
    assert whole.entry == read.entry == FileEntry.of(folder / "b.onnx_data")
    assert whole.entry == FileEntry(3_000_000, hashlib.sha256(data).hexdigest(), BLOCK)
    assert whole.crcs.tolist() == [zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert (whole.crcs == read.crcs).all()
    assert len(whole.crcs) == whole.entry.blocks == 46


def test_many_files_are_measured_at_once(folder: Path) -> None:
    told: list[int] = []
    found = measure_all(folder, {name: block for name, (block, _) in FILES.items()}, told.append)
    assert list(found) == list(FILES)
    for name, (block, data) in FILES.items():
        assert found[name].entry == measured_as(block, data).entry
    assert sum(told) == sum(len(data) for _, data in FILES.values())


def test_measuring_takes_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    measure(tmp_path / "big", PAGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_one_failure_stops_the_others() -> None:
    begun, stopped = threading.Event(), threading.Event()

    def work(name: str, tick: object) -> None:
        if name == "bad":
            begun.wait(10)
            raise OSError(5, "Input/output error")
        begun.set()
        try:
            while True:
                tick(1)  # type: ignore[operator]
        finally:
            stopped.set()

    with pytest.raises(OSError, match="Input/output error"):
        over_files({"bad": 2, "long": 1}, work)
    assert stopped.is_set()


def test_sound_files_pass(folder: Path) -> None:
    checksums = opened(folder)
    checksums.check(*FILES)
    pages = checksums.pages("a.bin")
    assert pages is not None
    assert pages.tolist()[0] == zlib.crc32(FILES["a.bin"][1][:PAGE])
    assert checksums.pages("b.onnx_data") is None  # its blocks are no pages
    assert (folder / names.CHECKSUMS).stat().st_size == 4 * (6 + 46)
    with pytest.raises(EdgeRuntimeError, match="other is not listed"):
        checksums.check("other")


@pytest.mark.parametrize(
    ("name", "at", "place"),
    [
        ("a.bin", [0], "bytes 0 to 4095"),
        ("a.bin", [PAGE, 2 * PAGE], "bytes 4096 to 12287"),
        ("a.bin", [5 * PAGE + 99], "bytes 20480 to 20579"),
        ("a.bin", [0, 2 * PAGE, 4 * PAGE + 7], "bytes 0 to 4095, 8192 to 12287, 16384 to 20479"),
        ("b.onnx_data", [2_999_999], "bytes 2949120 to 2999999"),
        (
            "b.onnx_data",
            [0, 200_000, 400_000, 600_000, 800_000],
            "bytes 0 to 65535, 196608 to 262143, 393216 to 458751 and 2 more places",
        ),
    ],
)
def test_damage_is_placed(folder: Path, name: str, at: list[int], place: str) -> None:
    checksums = opened(folder)
    for offset in at:
        flip(folder / name, offset)
    with pytest.raises(EdgeRuntimeError) as caught:
        checksums.check("c", name)
    assert str(caught.value) == f"{folder}: {name} is damaged in {place}"


def test_checking_goes_on_beside_and_its_error_goes_first(folder: Path) -> None:
    checksums = opened(folder)
    with checksums.checking("a.bin", "b.onnx_data"):
        pass
    with pytest.raises(ValueError, match="the body's"), checksums.checking("a.bin"):
        raise ValueError("the body's")
    flip(folder / "b.onnx_data", 1_000_000)
    with pytest.raises(EdgeRuntimeError, match="onnx_data is damaged in bytes 983040 to"):
        use(checksums, None)
    with pytest.raises(EdgeRuntimeError, match="onnx_data is damaged in bytes 983040 to"):
        use(checksums, ValueError("the body's"))


def use(checksums: Checksums, error: Exception | None) -> None:
    with checksums.checking("a.bin", "b.onnx_data"):
        if error:
            raise error


@pytest.mark.parametrize("length", [-1, 0, 1_500_000, 3_000_001, None])
def test_opening_refuses_files_of_another_size(folder: Path, length: int | None) -> None:
    opened(folder)
    path = folder / "b.onnx_data"
    if length is None:
        path.unlink()
        expected = "b.onnx_data is missing"
    else:
        data = path.read_bytes() + b"+"
        path.write_bytes(data[: length if length >= 0 else 2_999_999])
        expected = f"b.onnx_data has {path.stat().st_size} bytes instead of 3000000"
    measured = {name: measured_as(block, data) for name, (block, data) in FILES.items()}
    files = {name: m.entry for name, m in measured.items()} | {names.CHECKSUMS: FileEntry.of(folder / names.CHECKSUMS)}
    with pytest.raises(EdgeRuntimeError, match=expected):
        Checksums.open(folder, files)


def test_damaged_checksums_are_refused(folder: Path) -> None:
    measured = {name: measured_as(block, data) for name, (block, data) in FILES.items()}
    files = {name: m.entry for name, m in measured.items()} | {names.CHECKSUMS: write_checksums(folder, measured)}
    flip(folder / names.CHECKSUMS, 17)
    with pytest.raises(EdgeRuntimeError, match=r"checksums\.crc32 is damaged"):
        Checksums.open(folder, files)
    (folder / names.CHECKSUMS).unlink()
    with pytest.raises(EdgeRuntimeError, match=r"checksums\.crc32 is missing"):
        Checksums.open(folder, files)
