"""The soak leaves out nothing that the simulator can do."""

from typing import get_args

from halo_provider.simulator.faults import FaultKind
from halo_provider.simulator.limits import AnyLimit
from tests.soak.chaos import FAULTS, LIMITS


def test_every_kind_of_fault_is_made() -> None:
    """A kind that the simulator learns must be added where a chat can fail so, and every example is of its kind."""
    assert set(FAULTS) == set(FaultKind) - {FaultKind.WRONG_RESULT}
    assert all(fault.kind is kind for kind, faults in FAULTS.items() for fault in faults)


def test_every_kind_of_limit_is_put_on_halo() -> None:
    """A kind that the simulator learns must be added."""
    kinds, _discriminator = get_args(AnyLimit)

    assert {type(limit) for limit in LIMITS} - {type(None)} == set(get_args(kinds))
