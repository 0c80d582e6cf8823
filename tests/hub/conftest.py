"""A server that speaks the Hub's protocol, and a process with the real client, for all tests of a file."""

from __future__ import annotations

import pytest

from tests.hub.client import Client
from tests.hub.hub_server import Hub, serve


@pytest.fixture(scope="module")
def server():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    process = Client(server.address, tmp_path_factory.mktemp("cache"))
    yield process
    process.close()


@pytest.fixture
def hub(server) -> Hub:
    """The server, without what other tests left."""
    server.repositories, server.answers, server.faults, server.requests = {}, {}, {}, []
    server.on_request, server.commit_fault = None, False
    return server
