"""halo-ledger: look at the ledger and settle rows by hand, from a shell."""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, get_args

from halo_provider.delivery.lookup import Look, Sight
from halo_provider.exceptions import HaloConfigurationError, HaloError
from halo_provider.ledger import Ledger
from halo_provider.ledger.admin import (
    PRUNE_FROM,
    REJECT_FROM,
    REQUEUE_FROM,
    Confirmation,
    LedgerAdmin,
    current_user,
)
from halo_provider.ledger.overview import StatusSummary, by_namespace, summary
from halo_provider.ledger.row_filter import RowFilter, cursor_of
from halo_provider.ledger.row_reader import PAGE
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tombstones import forget, rows_of_user
from halo_provider.printing import Format, Record, write

# Scripts read these: new columns go to the end.
COLUMNS = ("namespace", "row_key", "status", "user_id", "session_id", "attempts", "updated_at", "error")
NAMESPACE_COLUMNS = ("namespace", "rows", *(status.value for status in LedgerStatus), "last_change")


class _NotAgreed(Exception):  # noqa: N818 -- an answer, not an error
    """The person said no, or nobody could be asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what was asked, 1 when not, 2 when the words are off."""
    parsed = _parser().parse_args(arguments)
    try:
        with closing(_ledger(parsed)) as ledger:
            admin = LedgerAdmin(ledger, actor=parsed.actor)
            return int(parsed.command(parsed, admin, ledger))
    except (HaloError, _NotAgreed) as error:
        print(f"halo-ledger: {error}", file=sys.stderr)
        return 1


def _ledger(parsed: argparse.Namespace) -> Ledger:
    if parsed.url:
        return Ledger.at(parsed.url, create=False)
    from halo_provider.hooks.ledger import open_ledger  # noqa: PLC0415 -- --url needs no Airflow

    return open_ledger(parsed.ledger_conn_id, create=False)


def _list(parsed: argparse.Namespace, admin: LedgerAdmin, _ledger: Ledger) -> int:
    def records() -> Iterator[Record]:
        after = None
        left = parsed.limit
        while left > 0 and (rows := admin.rows.page(_wanted(parsed), after=after, limit=min(PAGE, left))):
            yield from (row._mapping for row in rows)
            left -= len(rows)
            after = cursor_of(rows[-1])

    write(COLUMNS, records(), form=parsed.format, stream=sys.stdout)
    print(_told(admin.rows.counts(_wanted(parsed))) or "no rows", file=sys.stderr)
    return 0


def _namespaces(parsed: argparse.Namespace, _admin: LedgerAdmin, ledger: Ledger) -> int:
    write(NAMESPACE_COLUMNS, by_namespace(summary(ledger, RowFilter())), form=parsed.format, stream=sys.stdout)
    return 0


def _summary(parsed: argparse.Namespace, _admin: LedgerAdmin, ledger: Ledger) -> int:
    found = summary(ledger, _wanted(parsed))
    write(StatusSummary._fields, (each._asdict() for each in found), form=parsed.format, stream=sys.stdout)
    return 0


def _show(parsed: argparse.Namespace, admin: LedgerAdmin, _ledger: Ledger) -> int:
    row = admin.rows.row(parsed.namespace, parsed.row_key)
    if row is None:
        print("halo-ledger: there is no such row", file=sys.stderr)
        return 1
    for name, value in row._mapping.items():
        if value is not None:
            print(f"{name:>17}  {value}")
    for event in admin.rows.history(parsed.namespace, parsed.row_key):
        print(f"{event.at:%Y-%m-%d %H:%M:%S}  {event.event}  {event.detail or ''}  ({event.actor})")
    return 0


def _requeue(parsed: argparse.Namespace, admin: LedgerAdmin, _ledger: Ledger) -> int:
    confirmation = _agreed(parsed, admin, REQUEUE_FROM)
    return _changed(admin.requeue(_wanted(parsed), reason=parsed.reason, confirmation=confirmation), parsed)


def _resolve(parsed: argparse.Namespace, admin: LedgerAdmin, _ledger: Ledger) -> int:
    return _changed(
        admin.resolve(_wanted(parsed), session_ids={parsed.row_key[0]: parsed.session_id}, reason=parsed.reason), parsed
    )


def _reject(parsed: argparse.Namespace, admin: LedgerAdmin, _ledger: Ledger) -> int:
    confirmation = _agreed(parsed, admin, REJECT_FROM)
    return _changed(admin.reject(_wanted(parsed), reason=parsed.reason, confirmation=confirmation), parsed)


def _prune(parsed: argparse.Namespace, admin: LedgerAdmin, ledger: Ledger) -> int:
    before = ledger.now() - timedelta(days=_retention_days(parsed))
    wanted = _wanted(parsed)
    if not parsed.row_key:
        _agree(parsed, admin.choice(replace(wanted, unchanged_since=before), PRUNE_FROM).counts)
    return _changed(admin.prune(wanted, before=before), parsed)


def _forget(parsed: argparse.Namespace, _admin: LedgerAdmin, ledger: Ledger) -> int:
    _agree(parsed, dict(Counter(row.status for row in rows_of_user(ledger, parsed.user))))
    done = forget(ledger, parsed.user, actor=parsed.actor)
    print(f"{done.rows:,} rows {parsed.done}")
    if done.rows:
        print("Halo still has what it got of this user: delete it there", file=sys.stderr)
    if done.left:
        print(
            f"halo-ledger: {done.left:,} rows are a running task's; forget the user again when it has ended",
            file=sys.stderr,
        )
        return 1
    return 0


def _retention_days(parsed: argparse.Namespace) -> float:
    """The days given, else those of the policy."""
    if parsed.older_than is not None:
        return float(parsed.older_than)
    days = None
    if not parsed.url:
        from halo_provider.hooks.ledger import retention_days  # noqa: PLC0415 -- --url needs no Airflow

        days = retention_days()
    if days is None:
        raise HaloConfigurationError(
            "how old? give --older-than DAYS, or set [halo] retention_days in Airflow's configuration"
        )
    return days


def _ask(parsed: argparse.Namespace, admin: LedgerAdmin, ledger: Ledger) -> int:
    from halo_provider.delivery.ask_later import ask_later  # noqa: PLC0415 -- needed by this command alone
    from halo_provider.hooks.halo import HaloHook  # noqa: PLC0415

    def told(row: Any, look: Look) -> None:
        session = f"  {look.session_id}" if look.session_id else ""
        print(
            f"{row.namespace}  {row.row_key}  {look.sight.value}{session}{f'  ({look.reason})' if look.reason else ''}"
        )

    async def ask() -> Counter[Sight]:
        hook = HaloHook(parsed.namespace.rpartition("/")[0])
        async with hook.reader(ledger) as reader:
            return await ask_later(
                ledger, _wanted(parsed), admin=admin, reader=reader, ask_after=parsed.ask_after, on_answer=told
            )

    counts = asyncio.run(ask())
    print(
        f"{counts[Sight.FOUND]:,} found and resolved, {counts[Sight.ABSENT]:,} not there and requeued, "
        f"{counts[Sight.UNCLEAR]:,} left in doubt"
    )
    return 1 if counts[Sight.UNCLEAR] else 0


def _agreed(parsed: argparse.Namespace, admin: LedgerAdmin, before: Sequence[LedgerStatus]) -> Confirmation | None:
    """What the person agreed to, where rows are not named one by one. Raises _NotAgreed."""
    if parsed.row_key or parsed.yes:
        return None
    choice = admin.choice(_wanted(parsed), before)
    _agree(parsed, choice.counts)
    return choice.confirmation


def _agree(parsed: argparse.Namespace, counts: dict[LedgerStatus, int]) -> None:
    """Say how many rows would change, and ask. Raises _NotAgreed."""
    number = sum(counts.values())
    if parsed.yes or not number:
        return
    print(f"{number:,} rows would be {parsed.done}: {_told(counts)}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise _NotAgreed("nothing was changed; --yes does it without a question")
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise _NotAgreed("nothing was changed")


def _told(counts: dict[LedgerStatus, int]) -> str:
    return ", ".join(f"{count:,} {status.value}" for status, count in counts.items())


def _changed(count: int, parsed: argparse.Namespace) -> int:
    """Say how many; with keys named one by one, fewer than named is a failure."""
    print(f"{count:,} rows {parsed.done}")
    if count < len(parsed.row_key):
        print(
            "halo-ledger: the others do not exist, are in a state that does not allow it, or are a running task's",
            file=sys.stderr,
        )
        return 1
    return 0


def _wanted(parsed: argparse.Namespace) -> RowFilter:
    return RowFilter(
        namespace=parsed.namespace,
        row_keys=tuple(parsed.row_key or ()),
        statuses=tuple(LedgerStatus(status) for status in parsed.status or ()),
        dag_ids=(parsed.dag_id,) if parsed.dag_id else None,
        run_id=parsed.run_id,
        search=parsed.search,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="halo-ledger", description=__doc__)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--ledger-conn-id", help="the Airflow connection of the ledger; by default as in the tasks")
    place.add_argument("--url", help="a SQLAlchemy URL, where Airflow is not at hand")
    parser.add_argument("--actor", default=current_user(), help="who does it, for the history; by default you")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="rows, and how many there are of each status")
    _add_filter(listing)
    listing.add_argument("--limit", type=int, default=PAGE, help=f"most rows printed (default {PAGE})")
    _add_format(listing)
    listing.set_defaults(command=_list)

    spaces = commands.add_parser("namespaces", help="the namespaces, and how many rows of each status they have")
    _add_format(spaces)
    spaces.set_defaults(command=_namespaces)

    summing = commands.add_parser("summary", help="rows counted by namespace and status, and when they changed")
    _add_filter(summing)
    _add_format(summing)
    summing.set_defaults(command=_summary)

    show = commands.add_parser("show", help="everything about one row, with its history")
    show.add_argument("namespace", help="<connection id>/<submission name>")
    show.add_argument("row_key")
    show.set_defaults(command=_show)

    asking = commands.add_parser(
        "ask", help="look rows in doubt up in Halo: resolve what is there, requeue what is not"
    )
    asking.add_argument("--namespace", required=True, help="<connection id>/<submission name>")
    asking.add_argument("--ask-after", type=float, default=60.0, metavar="SECONDS", help="(default: %(default)g)")
    asking.add_argument("row_key", nargs="*", help="rows by key; without any, all that are in doubt")
    asking.set_defaults(command=_ask, status=None, dag_id=None, run_id=None, search=None)

    forgetting = commands.add_parser(
        "forget", help="erase what the ledger knows of a person, but for a hash by which no row is sent again"
    )
    forgetting.add_argument("--user", required=True, metavar="ID", help="the user's id, as it was sent to Halo")
    _add_yes(forgetting)
    forgetting.set_defaults(command=_forget, done="forgotten")

    for name, command, done, explanation in (
        ("requeue", _requeue, "requeued", "let the next run send rows in doubt, failed or rejected"),
        ("resolve", _resolve, "resolved", "take one row in doubt as delivered, with the session found in Halo"),
        ("reject", _reject, "rejected", "never send rows in doubt, failed or pending, unless their content changes"),
        ("prune", _prune, "deleted", "delete old delivered and rejected rows: read again, they are sent again"),
    ):
        settling = commands.add_parser(name, help=explanation, description=explanation)
        # One session is one row's: resolving takes one row, by name.
        _add_filter(settling, namespace_required=name != "prune", row_keys=1 if name == "resolve" else "*")
        settling.set_defaults(command=command, done=done)
        if name != "resolve":
            _add_yes(settling)
        if name == "resolve":
            settling.add_argument("--session-id", required=True)
        if name == "prune":
            settling.add_argument(
                "--older-than", type=float, metavar="DAYS", help="by default [halo] retention_days of Airflow"
            )
        else:
            settling.add_argument("--reason", required=name == "reject")
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=get_args(Format), default="table", help="json is one object a line (default: %(default)s)"
    )


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_filter(
    parser: argparse.ArgumentParser, *, namespace_required: bool = False, row_keys: Literal["*", 1] = "*"
) -> None:
    parser.add_argument("--namespace", required=namespace_required, help="<connection id>/<submission name>")
    parser.add_argument("--status", action="append", choices=[status.value for status in LedgerStatus])
    parser.add_argument("--dag-id")
    parser.add_argument("--run-id")
    parser.add_argument("--search", help="part of a row key, user id or session id")
    parser.add_argument("row_key", nargs=row_keys, help="rows by key; without any, all that the options name")


if __name__ == "__main__":
    sys.exit(main())
