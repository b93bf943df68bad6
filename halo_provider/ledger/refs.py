"""Numbers that stand for runs and task instances in indexes: their names are too long for them."""

from hashlib import blake2b


def run_ref(dag_id: str | None, run_id: str | None) -> int | None:
    """The number of a DAG's run; None outside a run."""
    return None if dag_id is None or run_id is None else _number(dag_id, run_id)


def task_ref(task_id: str | None, map_index: int | None) -> int | None:
    """The number of a task instance among those of its run; None outside a task."""
    return None if task_id is None else _number(task_id, str(-1 if map_index is None else map_index))


def _number(*names: str) -> int:
    """64 bits, signed: two of a billion names are the same in one of 40 ledgers, and nobody can choose which."""
    digest = blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
