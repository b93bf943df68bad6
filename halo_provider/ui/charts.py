"""Charts as rectangles, which the templates draw as inline SVG: no script, and nothing to load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halo_provider.ledger.delivery_records import DeliveryRecord

WIDTH = 400  # units of the SVG's own coordinates
HEIGHT = 96  # of the same
FILLED = 0.92  # share of a column's place that it fills
STATUSES = ("delivered", "already_delivered", "duplicate", "not_attempted", "rejected", "failed", "in_doubt")


@dataclass(frozen=True, slots=True)
class Box:
    """One rectangle; `kind` is its CSS class."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One delivery: boxes on top of each other, and the same in words."""

    delivery: DeliveryRecord
    title: str
    boxes: list[Box]

    @property
    def place(self) -> tuple[float, float]:
        """Where it begins from the left, and how wide it is; nothing may have been counted."""
        return (self.boxes[0].x, self.boxes[0].width) if self.boxes else (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns from left to right; `top` is the value at the upper edge."""

    columns: list[Column]
    top: float


def stacked_columns(deliveries: Sequence[DeliveryRecord], names: Sequence[str]) -> Chart:
    """One column for each delivery, made of these values; of `deliveries`, the first is the newest and on the right."""
    values = [{name: getattr(each, name) for name in names} for each in reversed(deliveries)]
    top = max((sum(each.values()) for each in values), default=0.0)
    step = WIDTH / max(len(deliveries), 1)
    columns = []
    for slot, (delivery, counts) in enumerate(zip(reversed(deliveries), values, strict=True)):
        boxes = []
        floor = float(HEIGHT)
        for kind, value in counts.items():
            if value:
                height = value / top * HEIGHT
                floor -= height
                boxes.append(
                    Box(kind, round(slot * step, 2), round(floor, 2), round(step * FILLED, 2), round(height, 2))
                )
        columns.append(Column(delivery, _title(delivery), boxes))
    return Chart(columns, top)


def share_bar(counts: Mapping[str, int]) -> list[Box]:
    """One bar of the whole width, split by share; a kind that occurs stays visible, however small its share."""
    total = sum(counts.values())
    thinnest = WIDTH / 200
    widths = {kind: max(thinnest, count / total * WIDTH) for kind, count in counts.items() if count}
    scale = WIDTH / sum(widths.values()) if widths else 0.0
    boxes = []
    x = 0.0
    for kind, width in widths.items():
        boxes.append(Box(kind, round(x, 2), 0, round(width * scale, 2), HEIGHT))
        x += width * scale
    return boxes


def progress_bar(delivery: DeliveryRecord) -> list[Box]:
    """How far a delivery is: its rows by their status, and those that are left, as far as their number is known."""
    left = max(0, (delivery.total or 0) - delivery.settled)
    return share_bar({**{name: getattr(delivery, name) for name in STATUSES}, "left": left})


def statuses(deliveries: Sequence[DeliveryRecord]) -> Chart:
    """Rows by their status."""
    return stacked_columns(deliveries, STATUSES)


def throughput(deliveries: Sequence[DeliveryRecord]) -> Chart:
    """Rows a second."""
    return stacked_columns(deliveries, ("rows_per_second",))


def errors(deliveries: Sequence[DeliveryRecord]) -> Chart:
    """Rows that were not delivered, and answers of 429."""
    return stacked_columns(deliveries, ("rejected", "failed", "in_doubt", "not_attempted", "refused"))


def _title(delivery: DeliveryRecord) -> str:
    return f"{delivery.dag_id}, {delivery.started_at:%d %b %H:%M} UTC: {delivery.sentence(ended=True)}"
