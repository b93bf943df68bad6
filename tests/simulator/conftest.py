"""A simulator on a real socket, and a plain HTTP client that shares nothing with the provider's own."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from tests.simulator.programs import NO_CERTIFICATES, Program


@pytest.fixture(scope="session")
def simulator_and_url() -> Iterator[tuple[Simulator, str]]:
    """One simulator for all tests that need nothing special."""
    simulator = Simulator()
    with serving(simulator) as url:
        yield simulator, url


@pytest.fixture
def simulator(simulator_and_url: tuple[Simulator, str]) -> Simulator:
    """The shared simulator, empty."""
    simulator_and_url[0].reset()
    return simulator_and_url[0]


@pytest.fixture
def client_of() -> Iterator[Callable[[str], httpx.Client]]:
    """Make clients with the widget key for an origin."""
    clients = []

    def make(url: str) -> httpx.Client:
        client = httpx.Client(
            base_url=f"{url}/api/sdk",
            headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"},
            timeout=5,
            trust_env=False,
            verify=NO_CERTIFICATES,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def halo(
    simulator: Simulator,
    simulator_and_url: tuple[Simulator, str],
    client_of: Callable[[str], httpx.Client],
) -> httpx.Client:
    """A client of the shared simulator's SDK."""
    return client_of(simulator_and_url[1])


@pytest.fixture
def served(client_of: Callable[[str], httpx.Client]) -> Iterator[Callable[..., tuple[Simulator, httpx.Client]]]:
    """Serve a simulator with options of its own, and return it with a client of it."""
    running = []

    def serve(**options: Any) -> tuple[Simulator, httpx.Client]:
        simulator = Simulator(**options)
        context = serving(simulator)
        url = context.__enter__()
        running.append(context)
        return simulator, client_of(url)

    yield serve
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture
def program(simulator: Simulator, simulator_and_url: tuple[Simulator, str]) -> Iterator[Program]:
    """A program that has not yet registered at the shared simulator."""
    program = Program(simulator_and_url[1])
    yield program
    program.close()
