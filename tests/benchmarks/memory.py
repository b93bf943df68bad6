"""How much memory a delivery needs: ``python -m tests.benchmarks.memory ROWS URL FOLDER`` prints its peak in kB."""

import sys
from pathlib import Path

from tests.benchmarks.contenders import Applications, halo


def peak_memory() -> int:
    """The most memory this program has held, in kB (getrusage would include the program it was forked from)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    rows, url, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    halo(Applications(folder, rows), url, in_flight=64, ledger_path=folder / f"memory-{rows}.db")
    sys.stdout.write(f"{peak_memory()}\n")
