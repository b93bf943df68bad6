"""Processes that share one sign-in: they use it, renew it, and may kill themselves while they do."""

import asyncio
import base64
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any
from urllib.request import urlopen

import httpx
from cryptography.fernet import Fernet

from halo_provider.client.access import StoredAccess
from halo_provider.client.transport import AiohttpTransport
from halo_provider.client.web import Web
from halo_provider.exceptions import HaloReadError, HaloSignInError
from halo_provider.ledger import Ledger
from halo_provider.ledger.sign_ins import RENEWAL_LEASE, SignIns
from halo_provider.login import Loopback, sign_in
from halo_provider.models import SignIn, Turn

KEY = base64.urlsafe_b64encode(b"an example of a key in all tests."[:32])  # the same in every process
CONN_ID = "halo_default"
USE_EVERY = 0.25  # seconds

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])
_starting = threading.Lock()  # multiprocessing's bookkeeping of children is not made for several threads


def approve(url: str, loopback: Loopback) -> str:
    """A person's browser, which approves at once and comes back."""
    visit = threading.Thread(target=lambda: urlopen(url).read())  # noqa: S310 -- loopback
    visit.start()
    answer = loopback.wait(10.0)
    visit.join()
    return answer


def sign_in_at(mcp_url: str, ledger: Ledger, *, lease: float = RENEWAL_LEASE) -> SignIns:
    """Sign in there, as a person would; the sign-in."""
    kept = SignIns(ledger, conn_id=CONN_ID, cipher=Fernet(KEY), lease=lease)
    asyncio.run(sign_in(kept, url=mcp_url, actor="somebody", answer_of=approve))
    return kept


class Point(StrEnum):
    """Where a process dies."""

    BEFORE_TURN = "before its turn"
    AFTER_TURN = "after its turn is recorded"
    IN_REQUEST = "while Halo answers"
    BEFORE_RECORD = "before the answer is recorded"
    AFTER_RECORD = "after the answer is recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How one process uses the sign-in, for so many seconds; or dies where it is first renewed."""

    mcp_url: str
    ledger_url: str
    key: bytes
    seconds: float = 0.0
    lease: float = RENEWAL_LEASE
    point: Point | None = None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class MortalSignIns(SignIns):
    """A store that dies around its transactions."""

    def __init__(self, ledger: Ledger, use: Use) -> None:
        super().__init__(ledger, conn_id=CONN_ID, cipher=Fernet(use.key), lease=use.lease)
        self._point = use.point

    def turn(self, *, refused: str | None, renew_before: float) -> Turn:
        """Die before or after it is recorded."""
        if self._point is Point.BEFORE_TURN:
            _die()
        turn = super().turn(refused=refused, renew_before=renew_before)
        if turn.renews and self._point is Point.AFTER_TURN:
            _die()
        return turn

    def renewed(self, sign_in: SignIn, *, lifetime: float | None) -> bool:
        """Die before or after it is recorded."""
        if self._point is Point.BEFORE_RECORD:
            _die()
        recorded = super().renewed(sign_in, lifetime=lifetime)
        if self._point is Point.AFTER_RECORD:
            _die()
        return recorded


class MortalTransport(httpx.AsyncBaseTransport):
    """A transport that dies when the request is with Halo."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Die a moment after it is sent."""
        asyncio.get_running_loop().call_later(0.2, _die)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close it."""
        await self._transport.aclose()


class User:
    """One such process."""

    def __init__(self, use: Use) -> None:
        self._reports, report = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_work, args=(use, report), daemon=True)
        with _starting:
            self._process.start()
        report.close()

    def report(self, *, within: float) -> dict[str, Any] | None:
        """What it saw; None where it died."""
        if not self._reports.poll(within):
            self._process.kill()
            raise TimeoutError(f"a process did not end within {within:g} s")
        try:
            return self._reports.recv()  # type: ignore[no-any-return]
        except EOFError:
            return None
        finally:
            self._reports.close()
            self._process.join()


def _work(use: Use, report: Connection) -> None:
    report.send(asyncio.run(_use(use)))


async def _use(use: Use) -> dict[str, Any]:
    """Ask for the token and use it again and again: how often it worked, was refused, or was not to be had."""
    told: dict[str, Any] = {"worked": 0, "refused": 0, "without": 0, "sign_in": None}
    with closing(Ledger.at(use.ledger_url)) as ledger:
        access = StoredAccess(
            MortalSignIns(ledger, use),
            transport=(lambda: MortalTransport(AiohttpTransport())) if use.point is Point.IN_REQUEST else None,
        )
        end = time.monotonic() + use.seconds
        async with Web(use.mcp_url, timeout=10.0) as web:
            refused: str | None = None
            while True:
                try:
                    token = await access.token(refused=refused)
                except HaloSignInError as error:
                    told["sign_in"] = str(error)
                    return told
                except HaloReadError:
                    told["without"] += 1
                else:
                    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
                    headers |= {"accept": "application/json, text/event-stream"}
                    body = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
                    status = (await web.send("POST", use.mcp_url, content=body, headers=headers)).status
                    refused = token if status == 401 else None
                    told["worked" if status == 200 else "refused"] += 1
                if time.monotonic() >= end:
                    return told
                await asyncio.sleep(USE_EVERY)
