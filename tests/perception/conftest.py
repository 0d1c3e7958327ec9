from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.perception.sounds import SoundServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def one_sound_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundServer]:
    """One for many tests: it takes two seconds until it is awake."""
    with pytest.MonkeyPatch.context() as environment:
        server = SoundServer(tmp_path_factory.mktemp("sound"), environment)
        yield server
        server.close()


@pytest.fixture
def sound_server(one_sound_server: SoundServer) -> SoundServer:
    one_sound_server.calm()
    return one_sound_server
