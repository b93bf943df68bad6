"""Requests know Halo's documented limits and repeat no value in an error; responses keep what is not documented."""

from typing import Any

import pytest
from pydantic import ValidationError

from halo_provider import models
from halo_provider.models import (
    COMPANY_SYSTEM_FIELDS,
    ENUMERATED_TRAITS,
    USER_SYSTEM_FIELDS,
    Answer,
    Chat,
    ChatAnswer,
    ContextEntry,
    CreateTicket,
    Event,
    Events,
    IdentifyCompany,
    IdentifyUser,
    Request,
    UpdateUsers,
    UpdateUsersAnswer,
    UserTraits,
    first_error,
)
from halo_provider.simulator.api import CHECKS
from halo_provider.simulator.rules import Refused

PATHS: dict[type[Request], str] = {
    IdentifyUser: "/users/identify",
    UpdateUsers: "/users/update",
    IdentifyCompany: "/companies/identify",
    Chat: "/chat",
    CreateTicket: "/tickets/create",
    Events: "/events",
}
SMALLEST: dict[type[Request], dict[str, Any]] = {
    IdentifyUser: {"user_id": "u"},
    UserTraits: {"user_id": "u"},
    UpdateUsers: {"users": [{"user_id": "u"}]},
    IdentifyCompany: {"company_id": "c"},
    ContextEntry: {"label": "Form", "value": 1},
    Chat: {"message": "m"},
    CreateTicket: {"user_id": "u", "subject": "s"},
    Event: {"event_type": "click"},
    Events: {"events": []},
}
VALUE = "a-private-value"  # must never be read in an error


def padded(size: int) -> dict[str, str]:
    """An object whose compact JSON has so many characters."""
    return {"k": "x" * (size - len('{"k":""}'))}


def accented(size: int) -> dict[str, str]:
    """An object whose compact JSON has so many bytes, but only about half as many characters."""
    room = size - len('{"k":""}')
    return {"k": "é" * (room // 2) + "x" * (room % 2)}


LIMITS: dict[str, tuple[type[Request], int, Any]] = {
    "message": (Chat, 10_000, lambda size: {"message": "é" * size}),
    "custom_fields": (Chat, 10_000, lambda size: {"custom_fields": padded(size)}),
    "history": (Chat, 50, lambda size: {"conversation_history": [{"role": "user"}] * size}),
    "user traits": (IdentifyUser, 20_000, lambda size: {"traits": accented(size - 2)}),
    "user context": (IdentifyUser, 20_000, lambda size: {"context": accented(size - 2)}),
    "user both": (
        IdentifyUser,
        20_000,
        lambda size: {"traits": padded(9_000), "context": accented(size - 9_000)},
    ),
    "traits of one of many": (
        UpdateUsers,
        20_000,
        lambda size: {"users": [{"user_id": "u", "traits": accented(size - 2)}]},
    ),
    "users at once": (
        UpdateUsers,
        1_000,
        lambda size: {"users": [{"user_id": f"u{number}"} for number in range(size)]},
    ),
    "company both": (
        IdentifyCompany,
        50_000,
        lambda size: {"traits": accented(20_000), "context": padded(size - 20_000)},
    ),
    "subject": (CreateTicket, 1_000, lambda size: {"subject": "é" * size}),
    "ticket message": (CreateTicket, 50_000, lambda size: {"message": "é" * size}),
    "ticket metadata": (CreateTicket, 50_000, lambda size: {"metadata": accented(size)}),
    "source": (CreateTicket, 50, lambda size: {"source": "x" * size}),
    "events": (Events, 100, lambda size: {"events": [{"event_type": "click"}] * size}),
    "event metadata": (
        Events,
        10_000,
        lambda size: {"events": [{"event_type": "click", "metadata": accented(size)}]},
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_documented_limit_is_met_exactly(limit: str) -> None:
    """A request at the limit passes here and at the simulator; one more passes neither."""
    model, size, fields = LIMITS[limit]
    check = CHECKS[PATHS[model]]

    check(model(**{**SMALLEST[model], **fields(size)}).model_dump(mode="json", exclude_none=True))

    too_much = {**SMALLEST[model], **fields(size + 1)}
    with pytest.raises(ValidationError):
        model(**too_much)
    with pytest.raises(Refused):
        check(too_much)


@pytest.mark.parametrize("model", PATHS, ids=lambda model: model.__name__)
def test_request_with_required_fields_only_is_accepted_by_halo(model: type[Request]) -> None:
    """What is optional here is optional there, and nothing is sent as null."""
    CHECKS[PATHS[model]](model(**SMALLEST[model]).model_dump(mode="json", exclude_none=True))


@pytest.mark.parametrize(
    ("model", "trait"),
    [(model, trait) for model in (IdentifyUser, UserTraits) for trait in sorted(USER_SYSTEM_FIELDS)]
    + [(IdentifyCompany, trait) for trait in sorted(COMPANY_SYSTEM_FIELDS)],
)
def test_system_managed_trait_is_refused_by_name(model: type[Request], trait: str) -> None:
    """Halo answers 400 to these: better to know before sending, and which one."""
    with pytest.raises(ValidationError) as caught:
        model(**SMALLEST[model], traits={trait: VALUE})

    assert first_error(caught.value) == (f"trait '{trait}' is managed by Halo and cannot be set", trait)


def test_company_and_user_have_their_own_system_managed_traits() -> None:
    """A company may say first_seen, a user health_score: Halo reserves them for the other one only."""
    assert IdentifyCompany(company_id="c", traits={"first_seen": 1, "last_seen": 1, "company_id": 1}).traits
    assert IdentifyUser(user_id="u", traits={"health_score": 1, "team_size": 1}).traits


@pytest.mark.parametrize("model", [IdentifyUser, UserTraits, IdentifyCompany])
@pytest.mark.parametrize("trait", ENUMERATED_TRAITS)
def test_enumerated_trait_takes_the_documented_values_only(model: type[Request], trait: str) -> None:
    """Each documented value passes; anything else, of whatever type, is refused with the values there are."""
    for allowed in (*ENUMERATED_TRAITS[trait], None):
        assert model(**SMALLEST[model], traits={trait: allowed}).traits == {trait: allowed}
    for wrong in (VALUE, "", 3, [VALUE], {"a": VALUE}):
        with pytest.raises(ValidationError) as caught:
            model(**SMALLEST[model], traits={trait: wrong})
        problem = first_error(caught.value)
        assert problem.trait == trait
        assert problem.message.startswith(f"trait '{trait}' must be one of ")
        assert VALUE not in str(caught.value)


def test_enumerated_values_are_those_of_halos_documentation() -> None:
    """The values of Halo's documentation, word for word."""
    terms = {"monthly", "quarterly", "annual", "bi_annual"}

    assert {name: set(values) for name, values in ENUMERATED_TRAITS.items()} == {
        "renewal_status": {
            "up_for_renewal",
            "in_progress",
            "likely_to_renew",
            "expansion_opportunity",
            "set_to_cancel",
            "set_to_cancel_trial",
            "at_risk",
            "renewed",
            "lost",
        },
        "contract_term": terms,
        "payment_terms": terms,
    }


@pytest.mark.parametrize("model", SMALLEST, ids=lambda model: model.__name__)
def test_unknown_field_of_a_request_is_refused(model: type[Request]) -> None:
    """A misspelt field never leaves; it is named, its value is not."""
    with pytest.raises(ValidationError, match="mesage") as caught:
        model(**SMALLEST[model], mesage=VALUE)

    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("model", SMALLEST, ids=lambda model: model.__name__)
def test_request_cannot_change_after_its_check(model: type[Request]) -> None:
    """What was checked is what is sent."""
    request = model(**SMALLEST[model])

    with pytest.raises(ValidationError):
        setattr(request, next(iter(SMALLEST[model])), "other")


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (IdentifyUser, {"user_id": [VALUE]}),
        (IdentifyUser, {"user_id": ""}),
        (IdentifyUser, {"traits": VALUE}),
        (IdentifyUser, {"traits": {"note": VALUE * 2_000}}),
        (IdentifyUser, {"traits": {"note": VALUE + "\ud800"}}),
        (UpdateUsers, {"users": [{"user_id": "u", "traits": {"id": VALUE}}]}),
        (UpdateUsers, {"users": []}),
        (IdentifyCompany, {"company_id": {"id": VALUE}}),
        (Chat, {"message": ""}),
        (Chat, {"message": VALUE * 1_000}),
        (Chat, {"message": VALUE + "\udce9"}),
        (Chat, {"mode": VALUE}),
        (Chat, {"images": VALUE}),
        (Chat, {"custom_fields": {"note": VALUE * 1_000}}),
        (Chat, {"context": {"form": {"label": "", "value": VALUE}}}),
        (Chat, {"context": {"form": {"label": "Form", "type": VALUE, "value": 1}}}),
        (Chat, {"context": {"form": {"label": "Form"}}}),
        (CreateTicket, {"user_id": None, "subject": VALUE}),
        (CreateTicket, {"subject": VALUE * 100}),
        (CreateTicket, {"metadata": {"note": VALUE * 10_000}}),
        (CreateTicket, {"source": VALUE * 10}),
        (Events, {"events": [{"event_type": "", "page_url": VALUE}]}),
        (Events, {"events": [{"event_type": "click", "metadata": {"note": VALUE * 1_000}}]}),
    ],
)
def test_validation_errors_repeat_no_value(model: type[Request], fields: dict[str, Any]) -> None:
    """An error may be logged; a trait or a message may not."""
    with pytest.raises(ValidationError) as caught:
        model(**{**SMALLEST[model], **fields})

    assert VALUE not in str(caught.value)
    assert VALUE not in repr(caught.value)
    assert VALUE not in first_error(caught.value).message


def test_first_error_names_the_field_by_its_path() -> None:
    """The text leads to the field, through lists and objects."""
    with pytest.raises(ValidationError) as caught:
        UpdateUsers(users=[{"user_id": "u"}, {"user_id": "u", "trait": {}}])

    assert first_error(caught.value) == ("users.1.trait: Extra inputs are not permitted", None)


def test_too_large_request_is_told_its_size() -> None:
    """How much there is, and how much Halo takes."""
    with pytest.raises(ValidationError) as caught:
        IdentifyUser(user_id="u", traits=padded(20_001))

    assert first_error(caught.value).message == "traits and context are 20,003 bytes together, Halo accepts 20,000"


def test_every_documented_entry_type_is_known() -> None:
    """The types of Halo's documentation, and none but them."""
    for kind in ["list", "integration", "error", "status", "config", "feature", "metric", "relationship", "custom"]:
        assert ContextEntry(label="x", type=kind, value=1).type == kind
    with pytest.raises(ValidationError):
        ContextEntry(label="x", type="table", value=1)


@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"a": None}, [None]])
def test_entry_keeps_its_value_however_empty(value: Any) -> None:
    """Halo documents a value in every entry: a null one is sent as null, and is none the less there."""
    chat = Chat(message="m", context={"form": ContextEntry(label="Form", value=value)})

    body = chat.model_dump(mode="json", exclude_none=True)

    assert body == {"message": "m", "context": {"form": {"label": "Form", "value": value}}}
    CHECKS["/chat"](body)


def test_ticket_needs_someone_to_belong_to() -> None:
    """A user_id or an e-mail address, either alone is enough."""
    assert CreateTicket(email="ada@example.com", subject="s").user_id is None
    assert CreateTicket(user_id="u", subject="s").email is None
    with pytest.raises(ValidationError, match="one of user_id and email is required"):
        CreateTicket(subject="s")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatAnswer, {"session_id": "s", "ticket": {"id": 7}, "confidence": 0.9}),
        (UpdateUsersAnswer, {"skipped": 2, "created": 5, "errors": []}),
        (Answer, {"success": True, "anything": None}),
        (Answer, {}),
    ],
)
def test_response_keeps_what_is_not_documented(model: type[models.Response], body: dict[str, Any]) -> None:
    """Unknown fields survive, with their values as they came."""
    documented = set(model.model_fields)

    assert model(**body).model_extra == {name: value for name, value in body.items() if name not in documented}


def test_numeric_ids_of_a_response_become_text() -> None:
    """An id may come as a number; here it is text, as everywhere."""
    answer = ChatAnswer(session_id=17, agent_id=4)

    assert (answer.session_id, answer.agent_id, answer.text) == ("17", "4", None)


@pytest.mark.parametrize("body", [{}, {"session_id": ""}, {"session_id": None}, {"session_id": [1]}])
def test_chat_answer_without_a_session_id_is_invalid(body: dict[str, Any]) -> None:
    """Halo documents a session_id in every answer: without one nothing can be relied upon."""
    with pytest.raises(ValidationError):
        ChatAnswer(**body)
