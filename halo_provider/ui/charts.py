"""Charts as rectangles, which the templates draw as inline SVG: no script, and nothing to load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halo_provider.ledger.delivery_records import DeliveryRecord

WIDTH = 400  # units of the SVG's own coordinates
HEIGHT = 96  # of the same
GAP = 2  # between columns


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
    """Boxes on top of each other, and their tooltip."""

    title: str
    boxes: list[Box]


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns from left to right; `top` is the value at the upper edge."""

    columns: list[Column]
    top: float


def stacked_columns(series: Sequence[tuple[str, Mapping[str, float]]], *, slots: int) -> Chart:
    """One column for each title, made of its values by kind; the last `slots` of them, aligned to the right."""
    shown = series[-slots:]
    top = max((sum(values.values()) for _, values in shown), default=0.0)
    step = WIDTH / slots
    columns = []
    for slot, (title, values) in enumerate(shown, start=slots - len(shown)):
        boxes = []
        floor = float(HEIGHT)
        for kind, value in values.items():
            if value:
                height = value / top * HEIGHT
                floor -= height
                boxes.append(Box(kind, round(slot * step, 2), round(floor, 2), round(step - GAP, 2), round(height, 2)))
        columns.append(Column(title, boxes))
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


def statuses(deliveries: Sequence[DeliveryRecord], *, slots: int) -> Chart:
    """Rows by their status, the newest delivery on the right. `deliveries` has the newest first."""
    names = ("delivered", "already_delivered", "duplicate", "not_attempted", "rejected", "failed", "in_doubt")
    return stacked_columns([(_title(each), _values(each, names)) for each in reversed(deliveries)], slots=slots)


def throughput(deliveries: Sequence[DeliveryRecord], *, slots: int) -> Chart:
    """Rows a second."""
    series = [
        (f"{_title(each)}: {each.rows_per_second:,.1f} rows a second", {"throughput": each.rows_per_second})
        for each in reversed(deliveries)
    ]
    return stacked_columns(series, slots=slots)


def errors(deliveries: Sequence[DeliveryRecord], *, slots: int) -> Chart:
    """Rows that were not delivered, and answers of 429."""
    names = ("rejected", "failed", "in_doubt", "not_attempted", "refused")
    return stacked_columns([(_title(each), _values(each, names)) for each in reversed(deliveries)], slots=slots)


def _title(delivery: DeliveryRecord) -> str:
    return f"{delivery.dag_id} · {delivery.started_at:%d %b %H:%M} UTC: {delivery.sentence(ended=True)}"


def _values(delivery: DeliveryRecord, names: Sequence[str]) -> dict[str, float]:
    return {name: getattr(delivery, name) for name in names}
