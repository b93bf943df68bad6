"""halo-check: find out what a Halo workspace does where Halo's documentation is silent, and what it means here."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from halo_provider.exceptions import HaloError

NARROWEST = 120  # columns of the table where the terminal is narrower, or the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when everything could be checked, 1 when not, 2 when the words are off."""
    parsed = _parser().parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):  # Airflow logs there from its import on, and JSON is to stand alone
            from halo_provider.hooks.halo import HaloHook  # noqa: PLC0415 -- imports Airflow

            hook = HaloHook(parsed.conn_id)
            _say("halo-check: this is what happens now", hook.what_check_does(parsed.user_id, ticket=parsed.ticket))
            if not (parsed.yes or _agreed()):
                print("halo-check: nothing was sent", file=sys.stderr)
                return 1
            report = hook.check(parsed.user_id, ticket=parsed.ticket)
    except HaloError as error:
        print(f"halo-check: {error}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    if not report["whole"]:
        print(f"halo-check: not everything was checked: {report['ended_early']}", file=sys.stderr)
        return 1
    return 0


def _say(headline: str, lines: Sequence[str]) -> None:
    print(headline, *(f"  - {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)


def _agreed() -> bool:
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower() in {"y", "yes"}
    except EOFError:
        print(file=sys.stderr)
        return False


def _print_table(report: dict[str, Any]) -> None:
    table = Table(
        Column("Question", ratio=3),
        Column("Documented", ratio=3),
        Column("Found", ratio=4),
        Column("What it means for your settings", ratio=5),
        title=Text(f"{report['connection']}: {report['base_url']}, user {report['user_id']}"),
        show_lines=True,
        expand=True,
    )
    for finding in report["findings"]:
        # As Text: what looks like rich's markup is none.
        table.add_row(*(Text(finding[name]) for name in ("question", "documented", "found", "means")))
    console = Console(width=max(NARROWEST, shutil.get_terminal_size().columns))
    console.print(table)
    made = ", ".join(report["session_ids"]) or "none"
    console.print(Text(f"{report['requests']} requests at {report['checked_at']}. Conversations it made: {made}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="halo-check", description=__doc__)
    parser.add_argument("--conn-id", default="halo_default", help="the Halo connection (default: %(default)s)")
    parser.add_argument("--user-id", required=True, help="a user made for tests, as whom the check writes")
    parser.add_argument("--yes", action="store_true", help="do not ask before the first request")
    parser.add_argument("--no-ticket", dest="ticket", action="store_false", help="let no chat ask for a ticket")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
