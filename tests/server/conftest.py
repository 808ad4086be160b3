"""One real server with both embedded models, shared by the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest
from serving import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("embedded:transformer", "embedded:mamba", "--threads", "1") as process:
        yield process.wait_ready()
