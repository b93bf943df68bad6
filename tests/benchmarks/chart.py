"""The charts: a panel for each answer time, rows a second over requests in flight; and one run over its time."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

COLOURS = {
    "provider": "#5b45d1",
    "bare aiohttp loop": "#8a8a94",
    "httpx, every connection kept": "#d1774a",
    "httpx, 20 kept": "#d9b13b",
    "dlt": "#3f9c6d",
}
Curve = Mapping[int, float]  # rows a second by requests in flight


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(path: Path, panels: Mapping[float, Mapping[str, Curve]], *, in_flight: Sequence[int], caption: str) -> None:
    """Draw the panels, by answer time in seconds and contender, into a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- only for those who renew the chart
    from matplotlib.ticker import NullLocator  # noqa: PLC0415

    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    for axes, (seconds, curves) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker="o", markersize=4, label=name, color=COLOURS[name])
        axes.set(xscale="log", yscale="log", title=f"answers after {seconds:g} s", xlabel="requests in flight")
        axes.set_xticks(in_flight, [str(number) for number in in_flight])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("rows a second")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(caption, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_course(
    path: Path,
    delivered: Sequence[float],
    possible: Sequence[tuple[float, float]],
    *,
    refused: Sequence[float],
    caption: str,
) -> None:
    """Draw rows and refusals a second over the time, and what was possible from when on, into a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- only for those who renew the chart

    end = int(possible[-1][0])
    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for (begin, rate), (until, _) in pairwise(possible):
        axes.hlines(rate, begin, until, color="#8a8a94", linestyle="--", label="possible" if begin == 0 else None)
    for moments, name, colour in ((delivered, "delivered", "#5b45d1"), (refused, "refused", "#b8434f")):
        counts = [sum(second <= moment < second + 1 for moment in moments) for second in range(end)]
        axes.plot([second + 0.5 for second in range(end)], counts, label=name, color=colour)
    axes.set(xlabel="seconds", ylabel="a second", title=caption)
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
