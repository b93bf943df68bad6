"""Users and companies made known to Halo: each once, users first, in one way or the other."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from halo_provider.client.client import HaloClient
from halo_provider.delivery.identify import IdentifyReport, identify
from halo_provider.delivery.options import SendOptions
from halo_provider.delivery.refusals import MAX_PAUSE
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloAuthenticationError,
    HaloConfigurationError,
    HaloError,
    HaloPermissionError,
    HaloServerError,
    RowError,
    SourceError,
)
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, RequestRecord, Simulator
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Company, Submission, User
from tests.core.deliveries import AT_ONCE, until
from tests.core.sources import BrokenSource

SUBMISSION = Submission(
    name="application",
    key="id",
    user=User(id="user", traits={"name": "name", "signed_up_at": "since"}),
    company=Company(id="company", traits={"name": "company_name"}),
    message="Hello.",
)
SEND_OPTIONS = {option.name for option in fields(SendOptions)}
UPDATE, IDENTIFY, COMPANIES = "/users/update", "/users/identify", "/companies/identify"


def row(user: Any, company: Any = "", **values: Any) -> dict[str, Any]:
    """A row about a user and a company."""
    return {"user": user, "company": company, "name": f"Name {user}", "since": "", "company_name": "Example", **values}


def rows(count: int) -> list[dict[str, Any]]:
    """So many users without a company."""
    return [row(f"user-{number}") for number in range(count)]


@dataclass(slots=True)
class Identifications:
    """Runs against one Halo; `rejected` are the rows that could not be used."""

    client: HaloClient
    rejected: list[tuple[Row, RowError]] = field(default_factory=list)

    async def identify(self, source: Source | Sequence[Any], **options: Any) -> IdentifyReport:
        """Identify on the running loop."""
        chosen = {"backoff": AT_ONCE} | {name: options.pop(name) for name in SEND_OPTIONS & options.keys()}
        defaults = {"submission": SUBMISSION, "client": self.client, "mode": "identify"}
        source = ListSource(source) if isinstance(source, Sequence) else source
        async with self.client:
            return await identify(
                source,
                on_rejected=lambda row, error: self.rejected.append((row, error)),
                options=SendOptions(**chosen),
                **{**defaults, **options},
            )

    def run(self, source: Source | Sequence[Any], **options: Any) -> IdentifyReport:
        """Identify from beginning to end."""
        return asyncio.run(self.identify(source, **options))


@pytest.fixture
def identifications(client: HaloClient, _no_certificates: None) -> Identifications:
    """Runs against the simulator, with an identity secret."""
    return Identifications(client)


def requests_to(halo: Simulator, path: str) -> list[RequestRecord]:
    """The requests to one path, in the order of arrival."""
    return [request for request in halo.requests if request.path == path]


@pytest.mark.parametrize("mode", ["identify", "update"])
def test_users_come_before_companies(halo: Simulator, identifications: Identifications, mode: str) -> None:
    """Every user is known when the first company comes."""
    halo.always(UPDATE, Fault.slow(0.05))
    halo.always(IDENTIFY, Fault.slow(0.01))

    report = identifications.run([row(f"user-{number}", f"company-{number % 3}") for number in range(20)], mode=mode)

    assert (report.read, report.users, report.companies, report.rejected, report.error) == (20, 20, 3, 0, None)
    assert (len(halo.users), len(halo.companies), report.mode) == (20, 3, mode)
    companies = requests_to(halo, COMPANIES)
    others = [request for request in halo.requests if request.path != COMPANIES]
    assert max(request.ended or 0 for request in others) <= min(request.started for request in companies)


@pytest.mark.parametrize("mode", ["identify", "update"])
def test_last_row_about_somebody_wins(halo: Simulator, identifications: Identifications, mode: str) -> None:
    """Each user and each company is one request, with what the last row says, and empty values wipe nothing."""
    given = [
        row("u1", "c1", name="old"),
        row("u2", "c1", company_name="older"),
        row("u1", "c1", name="new", company_name="newest"),
        row("u2", "c1", name="", company_name="newest"),
    ]

    report = identifications.run(given, mode=mode)

    assert (report.read, report.users, report.companies) == (4, 2, 1)
    assert {user_id: user.traits for user_id, user in halo.users.items()} == {"u1": {"name": "new"}, "u2": {}}
    assert halo.companies["c1"].traits == {"name": "newest"}
    assert len(requests_to(halo, COMPANIES)) == 1


def test_update_mode_sends_a_thousand_users_a_call(halo: Simulator, identifications: Identifications) -> None:
    """With the scoped token that such calls need, and in the order of the rows."""
    report = identifications.run(rows(2_500), mode="update", concurrency=1)

    assert report.users == 2_500
    bodies = [request.body or {} for request in requests_to(halo, UPDATE)]
    assert [len(body["users"]) for body in bodies] == [1_000, 1_000, 500]
    assert [user["user_id"] for body in bodies for user in body["users"]] == [f"user-{n}" for n in range(2_500)]
    assert {body["user_token"]["scope"] for body in bodies} == {"users.update"}
    assert requests_to(halo, IDENTIFY) == []


def test_update_mode_never_touches_last_seen(halo: Simulator, identifications: Identifications) -> None:
    """Neither of who is known already nor of who is new, and nobody is enrolled in an automation."""
    identifications.run([row("known")])
    seen = halo.users["known"].last_seen

    identifications.run([row("known", name="New"), row("new", since="2020-01-02")], mode="update")

    known, new = halo.users["known"], halo.users["new"]
    assert (known.last_seen, known.automation_enrolments, known.traits["name"]) == (seen, 1, "New")
    assert (new.last_seen, new.automation_enrolments, new.first_seen.year) == (None, 0, 2020)


@pytest.mark.parametrize(("mode", "linked"), [("identify", {"user-1"}), ("update", set())])
def test_only_identify_mode_links_the_user_to_the_company(
    halo: Simulator, identifications: Identifications, mode: str, linked: set[str]
) -> None:
    """Whether a link counts as the user's activity is not documented, and history must not risk it."""
    identifications.run([row("user-1", "company-1")], mode=mode)

    assert halo.companies["company-1"].user_ids == linked


def test_update_mode_without_an_identity_secret_is_refused_at_once(halo: Simulator, halo_url: str) -> None:
    """Before anything is read or sent."""
    client = HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url)

    with pytest.raises(HaloConfigurationError, match="identity_secret"):
        Identifications(client).run(rows(1), mode="update")

    assert halo.requests == []


@pytest.mark.parametrize("mode", ["identify", "update"])
def test_dry_run_counts_and_sends_nothing(halo: Simulator, identifications: Identifications, mode: str) -> None:
    """Everything is read and validated all the same."""
    report = identifications.run([*rows(3), row("user-0", "c"), row("")], mode=mode, dry_run=True)

    assert (report.read, report.users, report.companies, report.rejected) == (5, 3, 1, 1)
    assert halo.requests == []


def test_users_that_halo_skipped_are_counted(halo: Simulator, identifications: Identifications) -> None:
    """They are not among the users that it took."""
    body = {"success": True, "created": 7, "skipped": 3}
    halo.script(path=UPDATE, faults=[Fault.status(200, body=body)])

    report = identifications.run(rows(10), mode="update")

    assert (report.users, report.skipped, report.error) == (7, 3, None)


@pytest.mark.parametrize("bad", [0, 7, 15])
def test_refused_call_is_halved_until_only_the_wrong_user_is_left(
    halo: Simulator, identifications: Identifications, bad: int
) -> None:
    """One bad user costs nobody else: it is rejected with Halo's words and its own row."""
    given = rows(16)
    given[bad]["since"] = "the day before yesterday"

    report = identifications.run(given, mode="update")

    assert (report.users, report.rejected, report.error) == (15, 1, None)
    assert set(halo.users) == {f"user-{number}" for number in range(16)} - {f"user-{bad}"}
    ((rejected, error),) = identifications.rejected
    assert (rejected.number, rejected.values) == (bad + 1, given[bad])
    assert "signed_up_at must be an ISO 8601 date" in str(error)
    assert len(requests_to(halo, UPDATE)) == 2 * 4 + 1


def test_call_that_is_too_large_is_halved(halo: Simulator, identifications: Identifications) -> None:
    """413 for all of them says nothing about any of them."""
    halo.script(path=UPDATE, faults=[Fault.status(413)])

    report = identifications.run(rows(9), mode="update")

    assert (report.users, report.rejected) == (9, 0)
    assert [len((request.body or {})["users"]) for request in requests_to(halo, UPDATE)] == [9, 4, 5]


def test_refused_user_and_company_are_rejected_and_the_others_identified(
    halo: Simulator, identifications: Identifications
) -> None:
    """Each with the row that it came from."""
    halo.script_for(user_id="user-1", path=IDENTIFY, faults=[Fault.status(400, body={"error": "no such name"})])
    halo.script(path=COMPANIES, faults=[Fault.status(422, body={"error": "no such company"})])

    report = identifications.run([row(f"user-{number}", "c") for number in range(3)])

    assert (report.users, report.companies, report.rejected, report.error) == (2, 0, 2, None)
    assert [(rejected.number, str(error).rpartition(": ")[2]) for rejected, error in identifications.rejected] == [
        (2, "no such name"),
        (3, "no such company"),
    ]


def test_bad_rows_are_rejected_before_anything_is_sent(halo: Simulator, identifications: Identifications) -> None:
    """No user, too many traits, no row at all; a row without a company is fine."""
    given: list[Any] = [row(""), row("large", name="x" * 20_001), "no row", {"user": "ragged"}, row("good")]

    report = identifications.run(given)

    assert (report.read, report.users, report.companies, report.rejected) == (5, 1, 0, 4)
    assert [rejected.number for rejected, _ in identifications.rejected] == [1, 2, 3, 4]
    assert list(halo.users) == ["good"]


def test_row_that_is_no_unicode_is_rejected_alone(identifications: Identifications) -> None:
    """Also where only a column that nobody asked for is spoilt."""
    report = identifications.run([row("a", name="\ud800"), row("b", remark="\ud800"), row("c")])

    assert (report.users, report.rejected, report.error) == (1, 2, None)


def test_anonymous_rows_identify_no_user(halo: Simulator, identifications: Identifications) -> None:
    """There is no user to make known, but there is a company."""
    report = identifications.run([row("anonymous", "c")])

    assert (report.users, report.companies, report.rejected) == (0, 1, 0)
    assert halo.companies["c"].user_ids == set()


@pytest.mark.parametrize(
    "fault",
    [
        Fault.rate_limited(retry_after=0),
        Fault.status(500),
        Fault.status(503, headers={"Retry-After": "0"}),
        Fault.drop_before_acceptance(),
        Fault.drop_after_acceptance(),
        Fault.half_answer(),
        Fault.invalid_json(),
    ],
    ids=lambda fault: fault.kind,
)
@pytest.mark.parametrize("mode", ["identify", "update"])
def test_failed_attempts_are_repeated(
    halo: Simulator, identifications: Identifications, mode: str, fault: Fault
) -> None:
    """Saying twice who somebody is does no harm, so every doubt is settled by trying again."""
    for path in (UPDATE, IDENTIFY, COMPANIES):
        halo.script(path=path, faults=[fault, fault])

    report = identifications.run([row("user-1", "company-1")], mode=mode, max_attempts=3)

    assert (report.users, report.companies, report.error) == (1, 1, None)
    assert len(halo.requests) == 6


def test_429_does_not_use_up_attempts(halo: Simulator, identifications: Identifications) -> None:
    """Waiting for its turn is no failure."""
    halo.script(path=IDENTIFY, faults=[Fault.rate_limited(retry_after=0)] * 6)

    assert identifications.run(rows(1), max_attempts=1).users == 1


def test_failure_that_does_not_pass_ends_the_run(halo: Simulator, identifications: Identifications) -> None:
    """After max_attempts, with the last error; companies are not begun."""
    halo.always(IDENTIFY, Fault.status(502))

    report = identifications.run([row("user-1", "company-1")], max_attempts=2)

    assert isinstance(report.error, HaloServerError)
    assert (report.users, len(halo.requests)) == (0, 2)


def test_retry_after_beyond_the_cap_ends_the_run(halo: Simulator, identifications: Identifications) -> None:
    """Halo's wish is on the error, for whoever tries again."""
    halo.script(path=IDENTIFY, faults=[Fault.rate_limited(retry_after=MAX_PAUSE + 60)])

    report = identifications.run(rows(5), concurrency=1)

    assert isinstance(report.error, HaloError)
    assert getattr(report.error, "retry_after", None) == MAX_PAUSE + 60
    assert len(halo.requests) == 1


@pytest.mark.parametrize(("status", "error"), [(401, HaloAuthenticationError), (403, HaloPermissionError)])
@pytest.mark.parametrize("mode", ["identify", "update"])
def test_forbidden_call_ends_the_run(
    halo: Simulator, identifications: Identifications, mode: str, status: int, error: type[Exception]
) -> None:
    """Nobody rejected, and no request begun after the answer."""
    halo.always(UPDATE if mode == "update" else IDENTIFY, Fault.status(status))

    report = identifications.run([row(f"user-{number}", "c") for number in range(50)], mode=mode, concurrency=4)

    assert isinstance(report.error, error)
    assert (report.users, report.companies, report.rejected) == (0, 0, 0)
    assert len(halo.requests) <= 4


def test_source_that_fails_ends_the_run_before_anything_is_sent(
    halo: Simulator, identifications: Identifications
) -> None:
    """Half a file is no basis for saying who is who."""
    report = identifications.run(BrokenSource(rows(600)))

    assert isinstance(report.error, SourceError)
    assert halo.requests == []


def test_concurrency_is_an_upper_bound(halo: Simulator, identifications: Identifications) -> None:
    """Three live calls at a time, and no more."""
    halo.always(IDENTIFY, Fault.slow(0.05))

    identifications.run(rows(12), concurrency=3)

    spans = [(request.started, request.ended or 0.0) for request in halo.requests]
    assert max(sum(begun <= start < ended for begun, ended in spans) for start, _ in spans) == 3


@pytest.mark.parametrize("mode", ["identify", "update"])
def test_stop_with_grace_ends_hanging_calls_and_is_an_error(
    halo: Simulator, identifications: Identifications, mode: str
) -> None:
    """A run that was cut off is never green, and it does not outlive the grace."""
    halo.always(IDENTIFY, Fault.silence(accepted=True))
    halo.always(UPDATE, Fault.silence(accepted=True))

    async def stopped() -> IdentifyReport:
        stop = Stop()
        identifying = asyncio.create_task(identifications.identify(rows(10), mode=mode, stop=stop, concurrency=2))
        await until(lambda: halo.requests)
        stop.request("the task was killed", grace=0.05)
        return await identifying

    began = time.monotonic()
    report = asyncio.run(stopped())

    assert time.monotonic() - began < 2.0
    assert "the task was killed" in str(report.error)
    assert (report.users, report.rejected) == (0, 0)


def test_nothing_is_sent_after_a_stop(halo: Simulator, identifications: Identifications) -> None:
    """Who waited for a turn when it came has lost it."""
    halo.always(IDENTIFY, Fault.slow(0.1))

    async def stopped() -> IdentifyReport:
        stop = Stop()
        identifying = asyncio.create_task(
            identifications.identify(rows(20), stop=stop, concurrency=8, requests_per_second=0.1)
        )
        await until(lambda: halo.requests)
        stop.request("the task was killed")
        return await identifying

    report = asyncio.run(stopped())

    assert (report.users, len(halo.requests)) == (1, 1)
