"""From rows to accounted tickets: prepare, claim, send, pace, commit, report; also identify and dry run."""

from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.report import DeliveryReport, Outcome

__all__ = ["DeliveryReport", "Outcome", "deliver"]
