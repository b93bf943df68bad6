"""Where the loop's thread spends its time, by the package or the room whose code runs."""

import cProfile
import pstats
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PACKAGES = (Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib")))
STANDARD = Path(sysconfig.get_path("stdlib"))
OURS = Path(__file__).parents[2] / "halo_provider"


def shares(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Run the work on this thread; the share of its time by what ran, the largest first.

    Functions in C, as `select`, `json.dumps` or pydantic's core, count for the Python code that calls them.
    """
    profiler = cProfile.Profile(builtins=False)
    profiler.runcall(work)
    times: Counter[str] = Counter()
    for (file, _line, _name), (_calls, _all_calls, own, _with_callees, _callers) in pstats.Stats(
        profiler
    ).stats.items():
        times[_room(file)] += own
    total = times.total()
    return [(room, seconds / total) for room, seconds in times.most_common()]


def _room(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(OURS):
        return "/".join(("halo_provider", *path.relative_to(OURS).parts[:2]))
    for packages in PACKAGES:
        if path.is_relative_to(packages):
            return path.relative_to(packages).parts[0]
    if path.is_relative_to(STANDARD):
        return path.relative_to(STANDARD).parts[0].removesuffix(".py")
    return "other"
