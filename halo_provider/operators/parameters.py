"""What operators check of their parameters: when the DAG is parsed, and again once the templates are rendered.

A value that is a template cannot be checked before it is rendered, and is passed over until then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from halo_provider.delivery.results import check_results_ending
from halo_provider.exceptions import HaloConfigurationError, SourceError
from halo_provider.models import did_you_mean
from halo_provider.operators.files import is_object_storage, is_pattern
from halo_provider.sources.formats import format_of, parse_csv_options, parse_file_options
from halo_provider.sources.lists import check_rows
from halo_provider.sources.open import check_one_source, each_path
from halo_provider.sources.shards import Shard
from halo_provider.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_JINJA = ("{{", "{%", "{#")


def is_template(value: Any) -> bool:
    """Whether Airflow has still to render the value, or a part of it."""
    if isinstance(value, str):
        return any(mark in value for mark in _JINJA)
    if isinstance(value, Mapping):
        return any(map(is_template, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(is_template, value))
    return hasattr(value, "iter_references")  # an upstream task's output


def upstream_tasks(value: Any) -> list[str]:
    """The ids of the tasks whose output the value is."""
    return sorted({task.task_id for task, _ in getattr(value, "iter_references", list)()})


def check_context(context: Any) -> None:
    """Raise HaloConfigurationError where `execute` was called by hand, with a context that is no running task's."""
    if missing := [name for name in ("ti", "dag_run") if context.get(name) is None]:
        raise HaloConfigurationError(
            f"execute() needs the context of a running task, which has {' and '.join(missing)}: in a test, run the DAG "
            "with dag.test() and the fixtures `halo` and `halo_ledger` of halo_provider.testing; without Airflow, call "
            "halo_provider.delivery.deliver"
        )


def check_submission(submission: Any) -> None:
    """Raise HaloConfigurationError where it is no Submission."""
    if not isinstance(submission, Submission):
        found = "it is missing" if submission is None else f"not a {type(submission).__name__}"
        raise HaloConfigurationError(f"submission must be a halo_provider.submission.Submission; {found}")


def check_whole_number(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    """Raise HaloConfigurationError where the parameter is no int within its bounds."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value <= (math.inf if most is None else most)
    ):
        return
    bounds = f"at least {least:,}" if most is None else f"between {least:,} and {most:,}"
    raise HaloConfigurationError(f"{name} must be a whole number, {bounds}, not {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise HaloConfigurationError where the parameter is no number of more than 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise HaloConfigurationError(f"{name} must be a number, and more than 0, not {value!r}")


def check_allowance(name: str, value: Any) -> None:
    """Raise HaloConfigurationError where the parameter is neither a number of rows nor a share of them."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value < 0 or (isinstance(value, float) and not value <= 1):
        raise HaloConfigurationError(
            f"{name} must be a number of rows (int), or a share of them from 0.0 to 1.0, not {value!r}"
        )


def allowed_rows(allowance: float, rows: int) -> float:
    """How many of the rows an allowance allows: itself (int), or its share of them (float)."""
    return allowance * rows if isinstance(allowance, float) else allowance


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise HaloConfigurationError where the parameter is none of its choices."""
    if value not in choices:
        known = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise HaloConfigurationError(f"{name} must be {known}, not {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise HaloConfigurationError where the parameter is neither True nor False: a text that is not empty is true."""
    if not isinstance(value, bool):
        raise HaloConfigurationError(f"{name} must be True or False, not {value!r}; it is no templated field")


def check_source(
    *,
    csv_path: Any,
    csv_options: Any,
    file_path: Any,
    file_options: Any,
    sql: Any,
    sql_conn_id: Any,
    rows: Any,
    given: Collection[str],
) -> None:
    """Raise HaloConfigurationError where the parameters do not name exactly one source that can be one.

    `given` names those that the author gave, also where they have become None since.
    """
    check_one_source(given)
    for name, path in (("csv_path", csv_path), ("file_path", file_path)):
        _check_paths(name, path)
    is_rendered = not hasattr(rows, "iter_references") and not (isinstance(rows, str) and is_template(rows))
    if rows is not None and is_rendered:
        try:
            check_rows(rows)
        except SourceError as error:
            raise HaloConfigurationError(str(error)) from None
    if sql is not None and sql_conn_id is None:
        raise HaloConfigurationError("sql needs sql_conn_id, the connection of the database to ask")
    if not is_template(csv_options):
        parse_csv_options(csv_options)
    if is_template(file_options):
        return
    options = parse_file_options(file_options)
    for path in each_path(file_path) if file_path is not None and not is_template(file_path) else []:
        if not is_pattern(path) or "." in PurePosixPath(path).name:
            format_of(path, options)


def _check_paths(name: str, paths: Any) -> None:
    if paths is None or is_template(paths):
        return
    if not isinstance(paths, str | os.PathLike | list | tuple | set):
        raise HaloConfigurationError(
            f"{name} must be a path, a pattern or a list of them, not a {type(paths).__name__}"
        )
    for path in each_path(paths):
        if not path.strip():
            raise HaloConfigurationError(f"{name} is empty")


def check_outputs(
    *, sources: Mapping[str, Any], rejects_path: str | None, results_path: str | None, files: Iterable[str] = ()
) -> None:
    """Raise HaloConfigurationError where a file would be written over the source, or over the other one.

    `sources` are the parameters that may name files, `files` the ones that their patterns have.
    """
    for output, path in (("rejects_path", rejects_path), ("results_path", results_path)):
        if path is None:
            continue
        for name, paths in sources.items():
            given = [] if paths is None or hasattr(paths, "iter_references") else each_path(paths)
            if any(_may_be(path, one) for one in given):
                raise HaloConfigurationError(
                    f"{output} and {name} are the same file, {str(path)!r}; give it another name"
                )
        if _plain(path) in map(_plain, files):
            raise HaloConfigurationError(
                f"{output} is one of the source's own files, {str(path)!r}; give it another name"
            )
    if rejects_path is not None and results_path is not None and _plain(rejects_path) == _plain(results_path):
        raise HaloConfigurationError(f"rejects_path and results_path are the same file, {str(results_path)!r}")


def _may_be(path: str, named: str) -> bool:
    """Whether the path is the one named, or one that the pattern takes in."""
    if _plain(path) == _plain(named):
        return True
    return not is_template(named) and is_pattern(named) and PurePosixPath(_plain(path)).match(_plain(named))


def _plain(path: str) -> str:
    text = str(path)
    return text if is_object_storage(text) or is_template(text) else os.path.abspath(text)  # noqa: PTH100 -- of a pattern too


def check_results_path(results_path: Any) -> None:
    """Raise HaloConfigurationError where nobody writes files of this ending."""
    if results_path is not None and not is_template(results_path):
        check_results_ending(str(results_path))


def check_shard(shard: Any) -> None:
    """Raise HaloConfigurationError where it is no share."""
    if shard is not None and not is_template(shard):
        Shard.parse(str(shard))


def check_limit(name: str, value: Any, *, is_given: bool) -> None:
    """Raise HaloConfigurationError where it is no number of rows, as an int or as the text a template renders to.

    None is no limit; one that was given and has become None is refused, since its author wanted one.
    """
    if value is None and is_given:
        raise HaloConfigurationError(
            f"{name}: its template, or the upstream task, gave nothing (None), and no number is no limit"
        )
    if value is None or is_template(value):
        return
    check_whole_number(name, int(value) if is_whole_number(value) else value, least=0)


def is_whole_number(value: Any) -> bool:
    """Whether it is a text of digits."""
    return isinstance(value, str) and value.strip().isdecimal()


def refuse_unknown(operator: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise HaloConfigurationError that says what the first unknown parameter was meant to be."""
    for name in given:
        if name not in known:
            raise HaloConfigurationError(f"{operator} has no parameter {name!r}{did_you_mean(name, known)}") from None
