"""halo-login: sign in to Halo once, in a browser, so that rows in doubt can be looked up. It only ever reads."""

import argparse
import asyncio
import ssl
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

from halo_provider.client import oauth
from halo_provider.client.web import Web
from halo_provider.exceptions import HaloError, HaloReadError
from halo_provider.ledger.admin import current_user
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.models import SignIn

CALLBACK = "/callback"
PATIENCE = 300.0  # seconds for a person to approve
TIMEOUT = 30.0  # seconds for one request
DONE = b"<!doctype html><title>Halo</title><p>You are signed in for reading. You can close this page."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what was asked, 1 when not, 2 when the words are off."""
    parsed = _parser().parse_args(arguments)
    try:
        from halo_provider.hooks.halo import HaloHook  # noqa: PLC0415 -- imports Airflow
        from halo_provider.hooks.ledger import open_ledger  # noqa: PLC0415
        from halo_provider.hooks.reading import sign_ins_of  # noqa: PLC0415

        with closing(open_ledger(parsed.ledger_conn_id)) as ledger:
            sign_ins = sign_ins_of(ledger, parsed.conn_id)
            if parsed.status:
                return _status(sign_ins, parsed.conn_id)
            hook = HaloHook(parsed.conn_id)
            if parsed.revoke:
                return asyncio.run(_revoke(sign_ins, parsed.conn_id, ssl_context=hook.ssl_context()))
            answer_of = _pasted if parsed.no_browser else _from_browser
            signing_in = sign_in(
                sign_ins,
                url=hook.mcp_url,
                actor=parsed.actor,
                answer_of=answer_of,
                ssl_context=hook.ssl_context(),
            )
            signed_in = asyncio.run(signing_in)
    except HaloError as error:
        print(f"halo-login: {error}", file=sys.stderr)
        return 1
    granted = signed_in.scope or oauth.SCOPE
    print(f"Signed in for reading ({granted}). The tokens are in the ledger's database, encrypted.")
    if set(granted.split()) - {oauth.SCOPE}:
        print(f"halo-login: more than {oauth.SCOPE} was granted; only that is ever used", file=sys.stderr)
    return 0


class Loopback(HTTPServer):
    """Waits on this machine for the browser to come back with the answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Callback)
        self.answer: str | None = None

    @property
    def redirect_uri(self) -> str:
        """The address that the browser is sent back to."""
        return f"http://127.0.0.1:{self.server_port}{CALLBACK}"

    def wait(self, seconds: float) -> str:
        """The address with which the browser came back. Raises HaloReadError where nobody came."""
        self.timeout = seconds
        while self.answer is None:
            self.handle_request()
            if self.answer is None and not self.was_asked:
                raise HaloReadError(f"nobody approved within {seconds:g} s; try again, or use --no-browser")
            self.was_asked = False
        return self.answer

    was_asked = False  # for anything at all: browsers also ask for an icon


class _Callback(BaseHTTPRequestHandler):
    server: Loopback

    def do_GET(self) -> None:
        self.server.was_asked = True
        is_answer = urlsplit(self.path).path == CALLBACK
        if is_answer:
            self.server.answer = f"http://127.0.0.1:{self.server.server_port}{self.path}"
        self.send_response(200 if is_answer else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(DONE if is_answer else b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name in the standard library
        """Say nothing: the line would hold the code."""


AnswerOf = Callable[[str, Loopback], str]


async def sign_in(
    sign_ins: SignIns, *, url: str, actor: str, answer_of: AnswerOf, ssl_context: ssl.SSLContext | None = None
) -> SignIn:
    """Sign in at the server of `url`; `answer_of` opens the address, and returns the one that comes back."""
    async with Web(url, timeout=TIMEOUT, ssl_context=ssl_context) as web:
        endpoints = await oauth.discover(web, url)
        with Loopback() as loopback:
            client = await oauth.register(web, endpoints, redirect_uri=loopback.redirect_uri)
            request = oauth.begin(endpoints, client, redirect_uri=loopback.redirect_uri)
            answer = await asyncio.to_thread(answer_of, request.url, loopback)
        renewed = await oauth.finish(web, endpoints, client, request, answer=answer)
        old = await asyncio.to_thread(sign_ins.forget)
        sign_ins.save(renewed.sign_in, lifetime=renewed.lifetime, actor=actor)
        if old is not None:
            with suppress(HaloReadError):  # it ends by itself
                await oauth.revoke(web, old)
    return renewed.sign_in


async def _revoke(sign_ins: SignIns, conn_id: str, *, ssl_context: ssl.SSLContext | None) -> int:
    sign_in = sign_ins.forget()
    if sign_in is None:
        print(f"halo-login: nobody is signed in for {conn_id}", file=sys.stderr)
        return 1
    try:
        async with Web(sign_in.token_endpoint, timeout=TIMEOUT, ssl_context=ssl_context) as web:
            revoked = await oauth.revoke(web, sign_in)
    except HaloReadError as error:
        print(f"halo-login: the tokens are deleted here, but Halo was not told: {error.reason}", file=sys.stderr)
        return 1
    print("Signed out." if revoked else "The tokens are deleted here; Halo did not confirm that it revoked them.")
    return 0 if revoked else 1


def _status(sign_ins: SignIns, conn_id: str) -> int:
    state = sign_ins.state()
    if state is None:
        print(f"Nobody is signed in for {conn_id}: run halo-login --conn-id {conn_id}")
        return 1
    print(f"{state.actor} signed in on {state.created_at:%Y-%m-%d %H:%M} UTC; renewed {state.refreshes} times.")
    if state.problem:
        print(f"It has ended: {state.problem}. Run halo-login --conn-id {conn_id} again.")
        return 1
    return 0


def _from_browser(url: str, loopback: Loopback) -> str:
    print("Approve the sign-in in your browser. If none opens, use this address on this machine:")
    print(url, flush=True)
    with suppress(webbrowser.Error):
        webbrowser.open(url)
    return loopback.wait(PATIENCE)


def _pasted(url: str, _loopback: Loopback) -> str:
    print("Open this address in any browser and approve. The browser is then sent to an address that begins with")
    print("http://127.0.0.1 and may show an error: copy that whole address from its address bar.")
    print(url, flush=True)
    return input("Address: ").strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="halo-login", description=__doc__)
    parser.add_argument("--conn-id", default="halo_default", help="the Halo connection (default: %(default)s)")
    parser.add_argument("--ledger-conn-id", help="the Airflow connection of the ledger; by default as in the tasks")
    parser.add_argument("--actor", default=current_user(), help="who signs in; by default you")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-browser", action="store_true", help="print the address, and take the answer pasted")
    what.add_argument("--revoke", action="store_true", help="sign out: delete the tokens, and let Halo forget them")
    what.add_argument("--status", action="store_true", help="who is signed in, and whether it still holds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
