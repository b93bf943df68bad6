"""``python -m halo_provider.simulator``: a local Halo in the foreground, until Ctrl-C."""

import argparse
import contextlib
import os
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from halo_provider.simulator.answers import PARSER as ANSWERS_PARSER
from halo_provider.simulator.answers import Answers
from halo_provider.simulator.api import EXAMPLE_WIDGET_KEY, SDK_PATH, Simulator
from halo_provider.simulator.faults import MCP_PATH
from halo_provider.simulator.limits import PARSER as LIMIT_PARSER
from halo_provider.simulator.limits import Limit
from halo_provider.simulator.reading import PARSER as READING_PARSER
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.server import Server, listen

_Described = TypeVar("_Described")


def latency(text: str) -> tuple[float, float]:
    """Read seconds, ``0.5``, or a range of them, ``0.2-1.5``."""
    shortest, dash, longest = text.partition("-")
    seconds = float(shortest), float(longest if dash else shortest)
    if not 0 <= seconds[0] <= seconds[1]:
        raise ValueError(text)
    return seconds


def limit(text: str) -> Limit | None:
    """Read a limit from JSON; ``null`` is none."""
    return _parsed(LIMIT_PARSER, text)


def reading(text: str) -> Reading:
    """Read how the MCP server behaves from JSON."""
    return _parsed(READING_PARSER, text)


def answers(text: str) -> Answers:
    """Read from JSON what Halo leaves open about its answers."""
    return _parsed(ANSWERS_PARSER, text)


def _parsed(described: TypeAdapter[_Described], text: str) -> _Described:
    try:
        return described.validate_json(text)
    except ValidationError as exc:
        reasons = (": ".join([*map(str, error["loc"]), error["msg"]]) for error in exc.errors())
        raise argparse.ArgumentTypeError("; ".join(reasons)) from exc


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(
        prog="python -m halo_provider.simulator",
        description="A local Halo: the SDK under /api/sdk, the MCP server at /api/mcp, an inbox for people at /. "
        "Everything is in memory.",
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8400, help="0 takes a free one (default: %(default)s)")
    options.add_argument(
        "--widget-key",
        default=os.environ.get("HALO_SIMULATOR_WIDGET_KEY") or EXAMPLE_WIDGET_KEY,
        help=f"or HALO_SIMULATOR_WIDGET_KEY, which other processes cannot see; unset: {EXAMPLE_WIDGET_KEY}",
    )
    options.add_argument(
        "--identity-secret",
        default=os.environ.get("HALO_SIMULATOR_IDENTITY_SECRET") or None,
        help="verify user tokens with it; or HALO_SIMULATOR_IDENTITY_SECRET",
    )
    options.add_argument(
        "--enforce-verification", action="store_true", help="refuse a known user without a valid token (403)"
    )
    options.add_argument(
        "--latency", type=latency, default=(0.0, 0.0), metavar="SECONDS", help="of /chat, such as 0.2-1.5"
    )
    options.add_argument(
        "--other-latency", type=latency, default=(0.0, 0.0), metavar="SECONDS", help="of the other endpoints"
    )
    options.add_argument(
        "--limit",
        type=limit,
        metavar="JSON",
        help='such as {"kind": "token_bucket", "rate": 20}; halo_provider.simulator.limits lists them (default: none)',
    )
    options.add_argument(
        "--requests-per-second", type=float, metavar="N", help="short for a limit: beyond it 429 with Retry-After"
    )
    options.add_argument("--burst", type=int, metavar="N", help="requests at once (default: one second's worth)")
    options.add_argument(
        "--reading",
        type=reading,
        default=Reading(),
        metavar="JSON",
        help='how the MCP server behaves, such as {"variant": "paged", "lag": [0, 10], "consent": "approved"}; '
        "halo_provider.simulator.reading lists it (default: answers at once, a page asks for consent)",
    )
    options.add_argument(
        "--answers",
        type=answers,
        default=Answers(),
        metavar="JSON",
        help='what Halo leaves open about its answers, such as {"name_tickets": true, "rate_limit": 600}; '
        "halo_provider.simulator.answers lists it",
    )
    options.add_argument("--seed", type=int, default=0, help="of the latencies (default: %(default)s)")
    options.add_argument(
        "--accept-unknown-sessions", action="store_true", help="let a session_id of the client's begin a session"
    )
    options.add_argument(
        "--discard-bodies", action="store_true", help="keep ids and counts only, for hundreds of thousands of chats"
    )
    return options


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    options = parser()
    chosen = options.parse_args()
    try:
        simulator = Simulator(
            widget_key=chosen.widget_key,
            identity_secret=chosen.identity_secret,
            enforce_verification=chosen.enforce_verification,
            chat_latency=chosen.latency,
            other_latency=chosen.other_latency,
            limit=chosen.limit,
            reading=chosen.reading,
            answers=chosen.answers,
            requests_per_second=chosen.requests_per_second,
            burst=chosen.burst,
            seed=chosen.seed,
            accept_unknown_sessions=chosen.accept_unknown_sessions,
            record_bodies=not chosen.discard_bodies,
        )
        listener, origin = listen(host=chosen.host, port=chosen.port)
    except (ValueError, OSError) as exc:
        options.error(str(exc))
    places = f"inbox {origin}/  SDK {origin}{SDK_PATH}  MCP {origin}{MCP_PATH}"
    print(f"Halo simulator: {places}  (Ctrl-C ends it)", flush=True)  # noqa: T201 - for a person
    with contextlib.suppress(KeyboardInterrupt):
        Server(simulator).run([listener])


if __name__ == "__main__":
    main()
