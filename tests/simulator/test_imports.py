"""Which modules the simulator's own modules import, those for type checkers included."""

from graphlib import TopologicalSorter

import grimp

SIMULATOR = "halo_provider.simulator"
GRAPH = grimp.build_graph("halo_provider")
MODULES = {SIMULATOR, *GRAPH.find_descendants(SIMULATOR)}
IMPORTED = {module: GRAPH.find_modules_directly_imported_by(module) for module in MODULES}


def test_simulator_imports_nothing_from_the_rest_of_the_package() -> None:
    """It shares no code with the client, so that it finds the client's mistakes: not even the version number."""
    assert {module: imported - MODULES for module, imported in IMPORTED.items() if imported - MODULES} == {}


def test_modules_of_the_simulator_import_each_other_without_a_circle() -> None:
    """They can be put in an order in which each one imports only those before it."""
    order = list(TopologicalSorter(IMPORTED).static_order())

    assert set(order) >= MODULES
