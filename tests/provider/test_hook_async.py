"""HaloHook in asynchronous code: the client's keywords, adeliver, and what synchronous methods say inside a loop."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from halo_provider.exceptions import DeliveryIncompleteError, HaloConfigurationError
from halo_provider.hooks.halo import HaloHook
from halo_provider.models import Chat
from halo_provider.simulator import Fault, Simulator
from tests.example_keys import IDENTITY_SECRET
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, Statuses, Supervise
from tests.waiting import wait_until

ASYNC_DAG = """
import asyncio

from airflow.sdk import DAG, task

from halo_provider.hooks.halo import HaloHook
from tests.provider.notes import NOTE, rows

with DAG("{dag_id}", schedule=None):

    @task
    async def own():
        hook = HaloHook()
        found = await asyncio.gather(*(hook.adeliver([row], submission=NOTE) for row in rows(20)))
        return sum(each["delivered"] for each in found)

    own()
"""


@pytest.fixture
def hook(airflow_home: object, connect: Connect, statuses: Statuses, halo: Simulator) -> HaloHook:
    """A hook on the simulator, outside of any task, and no ledger yet."""
    return HaloHook()


def test_client_takes_the_keywords_of_the_hook(connect: Connect, halo: Simulator) -> None:
    """What a synchronous task writes with the hook, an asynchronous one writes with its client."""
    connect(extra={"identity_secret": IDENTITY_SECRET})

    async def calls() -> tuple[str, int]:
        async with HaloHook().client() as client:
            await client.identify_user("u1", traits={"plan": "pro"}, session_id="sess_1")
            await client.identify_company("c1", traits={"domain": "example.com"}, user_id="u1")
            updated = await client.update_users([{"user_id": "u2"}], update_only=True)
            await client.create_ticket("Broken", email="sam@example.com", priority="priority")
            await client.send_events([{"event_type": "seen"}], user_id="u1")
            answer = await client.chat("Hello", user_id="u1", custom_fields={"region": "emea"})
            return answer.session_id, updated.skipped

    session_id, skipped = asyncio.run(calls())

    bodies = {request.path: request.body for request in halo.requests}
    tokens = [body.pop("user_token", None) for body in bodies.values() if body is not None]
    assert bodies == {
        "/users/identify": {"user_id": "u1", "traits": {"plan": "pro"}, "context": {}, "session_id": "sess_1"},
        "/companies/identify": {
            "company_id": "c1", "user_id": "u1", "traits": {"domain": "example.com"}, "context": {},
        },
        "/users/update": {"users": [{"user_id": "u2", "traits": {}, "context": {}}], "update_only": True},
        "/tickets/create": {"subject": "Broken", "email": "sam@example.com", "priority": "priority"},
        "/events": {"events": [{"event_type": "seen"}], "user_id": "u1"},
        "/chat": {"message": "Hello", "user_id": "u1", "custom_fields": {"region": "emea"}},
    }  # fmt: skip
    assert (session_id, skipped) == (halo.chats[0].session_id, 1)
    assert sum(token is not None for token in tokens) == 5


def test_client_still_takes_the_request_itself(connect: Connect, halo: Simulator) -> None:
    """As before; a request and fields beside it are two requests."""

    async def calls() -> None:
        async with HaloHook().client() as client:
            await client.chat(Chat(message="Hello", user_id="u1"))
            with pytest.raises(TypeError, match="give a Chat or its fields, not both"):
                await client.chat(Chat(message="Hello"), user_id="u1")

    asyncio.run(calls())

    assert [(chat.message, chat.user_id) for chat in halo.chats] == [("Hello", "u1")]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda hook: hook.chat("Hello", mesage="?"),
            r"Chat: mesage: there is no such name \(did you mean 'message'\?\)",
        ),
        (lambda hook: hook.chat("Hello", mode="fax"), "Chat: mode: it must be 'chat', 'voice', 'video' or 'livehelp'"),
        (lambda hook: hook.identify_user(""), "IdentifyUser: user_id: String should have at least 1 character"),
        (lambda hook: hook.update_users([{"id": "u1"}]), r"users\.0\.user_id: it is missing"),
        (lambda hook: hook.create_ticket("Broken"), "CreateTicket: one of user_id and email is required"),
    ],
    ids=["unknown field", "unknown choice", "empty id", "user without id", "nobody"],
)
def test_request_that_halo_would_never_take_says_which_field(
    connect: Connect, halo: Simulator, call: Callable[[HaloHook], Any], words: str
) -> None:
    """In this package's words, without pydantic's links, and before anything is sent."""
    with pytest.raises(HaloConfigurationError, match=words) as caught:
        call(HaloHook())
    assert "pydantic" not in str(caught.value)
    assert halo.requests == []


def test_adeliver_goes_through_the_ledger(hook: HaloHook, halo: Simulator, statuses: Statuses) -> None:
    """The second time the rows are found delivered, and the sessions are the same."""
    first, second = (asyncio.run(hook.adeliver(rows(3), submission=NOTE)) for _ in range(2))

    assert (first["delivered"], second["delivered"], second["already_delivered"]) == (3, 0, 3)
    assert first["session_ids"] == second["session_ids"]
    assert set(statuses().values()) == {"delivered"}
    assert len(halo.chats) == 3


def test_adeliver_leaves_the_loop_to_others(hook: HaloHook, halo: Simulator) -> None:
    """Other tasks of the loop run on while a row waits for its answer."""
    halo.always("/chat", Fault.silence(accepted=False))

    async def both() -> int:
        delivering = asyncio.create_task(hook.adeliver(rows(1), submission=NOTE))
        turns = 0
        while not halo.requests:
            turns += 1
            await asyncio.sleep(0.001)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering
        return turns

    assert asyncio.run(both()) > 0


def test_adeliver_that_is_cancelled_leaves_its_row_in_doubt(
    hook: HaloHook, halo: Simulator, statuses: Statuses
) -> None:
    """What was being sent may be with Halo: the next delivery decides by on_in_doubt."""
    halo.always("/chat", Fault.silence())

    async def cut_off() -> None:
        delivering = asyncio.create_task(hook.adeliver(rows(1), submission=NOTE))
        await asyncio.to_thread(wait_until, lambda: halo.requests)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering

    asyncio.run(cut_off())
    halo.always("/chat", None)

    assert list(statuses().values()) == ["in_doubt"]
    with pytest.raises(DeliveryIncompleteError, match="1 are in doubt"):
        asyncio.run(hook.adeliver(rows(1), submission=NOTE, on_in_doubt="hold"))


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda hook: hook.deliver([], submission=NOTE), "`await hook.adeliver(…)`"),
        (lambda hook: hook.chat("Hello"), "`async with hook.client() as client: await client.chat(…)`"),
        (lambda hook: hook.identify_user("u1"), "await client.identify_user(…)`"),
        (lambda hook: hook.identify_company("c1"), "await client.identify_company(…)`"),
        (lambda hook: hook.update_users([{"user_id": "u1"}]), "await client.update_users(…)`"),
        (lambda hook: hook.create_ticket("Broken", user_id="u1"), "await client.create_ticket(…)`"),
        (lambda hook: hook.test_connection(), "`await asyncio.to_thread(hook.test_connection)`"),
    ],
    ids=["deliver", "chat", "identify_user", "identify_company", "update_users", "create_ticket", "test_connection"],
)
def test_synchronous_method_inside_a_loop_says_which_to_use(
    hook: HaloHook, halo: Simulator, call: Callable[[HaloHook], Any], instead: str
) -> None:
    """It would block the loop, and asyncio's own words name no remedy."""

    async def inside() -> None:
        call(hook)

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(inside())
    assert instead in str(caught.value)
    assert halo.requests == []


def test_many_deliveries_at_once_in_a_real_task_process(supervise: Supervise, halo: Simulator) -> None:
    """Each asks Airflow's supervisor for its connection; none waits for another for ever, and all are the task's."""
    result, log = supervise(ASYNC_DAG.format(dag_id=f"async_{uuid.uuid4().hex}"), "own")

    assert result.state("own") == "success", log
    assert result.xcom("own") == 20
    assert len(halo.chats) == 20
