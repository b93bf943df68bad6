"""Identity verification."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest

from halo_provider.simulator import Simulator

IDENTITY_SECRET = "ha_secret_example_" + "0" * 32
Served = Callable[..., tuple[Simulator, httpx.Client]]


def token(*, secret: str = IDENTITY_SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Sign claims."""
    return jwt.encode(claims, secret, algorithm=algorithm)


def soon() -> int:
    """Return an expiry within the hour."""
    return int(time.time()) + 600


@pytest.fixture
def verifying(served: Served) -> tuple[Simulator, httpx.Client]:
    """A simulator that enforces identity verification, and a client of it."""
    return served(identity_secret=IDENTITY_SECRET, enforce_verification=True)


@pytest.mark.parametrize("claim", ["user_id", "sub"])
def test_a_token_of_the_same_user_is_accepted(verifying: tuple[Simulator, httpx.Client], claim: str) -> None:
    """The claim user_id proves the user, and sub does in its place."""
    _, halo = verifying
    body = {"message": "Hello", "user_id": "user-1", "user_token": token(**{claim: "user-1"}, exp=soon())}

    assert halo.post("/chat", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": "Hello", "user_id": "user-1"}),
        ("/users/identify", {"user_id": "user-1"}),
        ("/companies/identify", {"company_id": "company-1", "user_id": "user-1"}),
        ("/tickets/create", {"subject": "Help", "user_id": "user-1"}),
        ("/events", {"events": [], "user_id": "user-1"}),
    ],
)
def test_enforced_verification_demands_a_token_for_a_known_user(
    verifying: tuple[Simulator, httpx.Client], path: str, body: dict[str, Any]
) -> None:
    """Every call with a user_id and no token is 403."""
    assert verifying[1].post(path, json=body).status_code == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": "Hello"}),
        ("/chat", {"message": "Hello", "user_id": "anonymous"}),
        ("/companies/identify", {"company_id": "company-1"}),
        ("/tickets/create", {"subject": "Help", "email": "ada@example.com"}),
    ],
)
def test_enforced_verification_lets_nobody_in_particular_pass(
    verifying: tuple[Simulator, httpx.Client], path: str, body: dict[str, Any]
) -> None:
    """Calls without a known user need no token."""
    assert verifying[1].post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    "bad",
    [
        "not.a.token",
        token(user_id="user-2"),
        token(user_id="user-1", exp=int(time.time()) - 1),
        token(user_id="user-1", secret="ha_secret_example_" + "1" * 32),
        token(user_id="user-1", secret="ha_secret_example_" + "0" * 64, algorithm="HS512"),
        token(name="Ada"),
    ],
)
def test_a_bad_token_is_refused_even_where_none_is_needed(served: Served, bad: str) -> None:
    """A token that is not valid for this user is 403 without enforcement too."""
    simulator, halo = served(identity_secret=IDENTITY_SECRET)

    answer = halo.post("/chat", json={"message": "Hello", "user_id": "user-1", "user_token": bad})

    assert (answer.status_code, simulator.chats) == (403, [])


def test_bulk_update_accepts_its_scoped_token(verifying: tuple[Simulator, httpx.Client]) -> None:
    """The scope users.update and an expiry within the hour suffice."""
    body = {"users": [{"user_id": "user-1"}], "user_token": token(scope="users.update", exp=soon())}

    assert verifying[1].post("/users/update", json=body).status_code == 200


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"user_token": token(scope="users.update")},
        {"user_token": token(scope="users.update", exp=int(time.time()) + 7_200)},
        {"user_token": token(scope="users.update", exp=int(time.time()) - 1)},
        {"user_token": token(scope="users.read", exp=soon())},
        {"user_token": token(scope="users.update", exp=soon(), user_id="user-1")},
    ],
)
def test_bulk_update_refuses_any_other_token(served: Served, bad: dict[str, str]) -> None:
    """No token, no expiry, one too far ahead or past, another scope, a user: 403 even without enforcement."""
    simulator, halo = served(identity_secret=IDENTITY_SECRET)

    answer = halo.post("/users/update", json={"users": [{"user_id": "user-1"}], **bad})

    assert (answer.status_code, simulator.users) == (403, {})


def test_bulk_update_needs_a_workspace_with_an_identity_secret(halo: httpx.Client) -> None:
    """Where nothing can be verified, the scoped token is refused."""
    body = {"user_id": "user-1", "user_token": token(scope="users.update", exp=soon())}

    assert halo.post("/users/update", json=body).status_code == 403


def test_enforcement_without_an_identity_secret_is_a_mistake() -> None:
    """A simulator that could never let anybody in cannot be made."""
    with pytest.raises(ValueError, match="identity_secret"):
        Simulator(enforce_verification=True)


def test_the_record_holds_claims_and_never_a_token(verifying: tuple[Simulator, httpx.Client]) -> None:
    """A recorded body shows what the token claimed, so that no token can leak from a test's output."""
    simulator, halo = verifying
    signed = token(user_id="user-1", exp=4_000_000_000)

    halo.post("/chat", json={"message": "Hello", "user_id": "user-1", "user_token": signed})
    halo.post("/chat", json={"message": "Hello", "user_token": "garbage"})

    tokens = [record.body and record.body["user_token"] for record in simulator.requests]
    assert tokens == [{"user_id": "user-1", "exp": 4_000_000_000}, None]
