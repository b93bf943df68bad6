"""Values of numpy and pandas as Python's own, so that everything behind a source knows Python's types only.

The types are recognised by the module that they name, since numpy and pandas are slow to import.
"""

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from halo_provider.submission import RowValues

_PYTHON_TYPES = frozenset(
    {str, int, float, bool, type(None), Decimal, datetime, date, time, timedelta, UUID, bytes, bytearray, memoryview}
)
_ARRAY_PACKAGES = frozenset({"numpy", "pandas"})
_FINER_THAN_PYTHON = ("[ns]", "[ps]", "[fs]", "[as]")  # units of numpy's that become integers, not datetimes


def python_row(values: RowValues) -> RowValues:
    """The row with Python's own values; the same object where it has no others."""
    if _PYTHON_TYPES.issuperset(map(type, values.values())):
        return values
    return _python_mapping(values)


def python_value(value: Any) -> Any:
    """The value as Python's own, also inside lists, tuples, sets and dicts; the same object where it is one already.

    A numpy scalar becomes a number, a text, a truth value, a datetime or a timedelta (of microseconds, which is what
    Python has room for), a missing one None; an array of numpy's or pandas' becomes a list.
    """
    kind = type(value)
    if kind in _PYTHON_TYPES:
        return value
    if kind.__module__.partition(".")[0] in _ARRAY_PACKAGES and hasattr(value, "tolist"):
        return _python_array(value)
    match value:
        case Mapping():
            return _python_mapping(value)
        case list() | tuple() | set() | frozenset():
            items = [python_value(item) for item in value]
            same = all(new is old for new, old in zip(items, value, strict=True))
            return value if same else items
    return value


def _python_mapping(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    converted = {name: python_value(value) for name, value in values.items()}
    return values if all(converted[name] is value for name, value in values.items()) else converted


def _python_array(value: Any) -> Any:
    dtype = str(getattr(value, "dtype", ""))
    if dtype.startswith(("datetime64", "timedelta64")) and dtype.endswith(_FINER_THAN_PYTHON):
        value = value.astype(f"{dtype.partition('[')[0]}[us]")
    found = value.tolist()
    if type(found) is type(value):  # a long double, which has no counterpart in Python
        return float(found)
    return python_value(found)
