"""How a row becomes a chat request: what is checked when the DAG is parsed, what a row adds, and what rejects it."""

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from halo_provider.exceptions import HaloConfigurationError, RowError
from halo_provider.models import COMPANY_SYSTEM_FIELDS, USER_SYSTEM_FIELDS
from halo_provider.simulator.api import CHECKS
from halo_provider.submission import Company, Entry, RenderedSubmission, Submission, User, masked

APPLICATION = Submission(
    name="application",
    key="submission_id",
    user=User(id="applicant_id", traits={"name": "contact_name", "email": "contact_email"}),
    company=Company(id="company_id", traits={"name": "company_name"}),
    message="New {application_type} application from {contact_name} at {company_name}. Please review and follow up.",
    context={
        "application": Entry(
            label="Partnership Application",
            type="custom",
            fields=["company_name", "application_type", "annual_revenue", "use_case", "submitted_at"],
        )
    },
)
APPLICATION_ROW = {
    "submission_id": "A-1",
    "applicant_id": "u-1",
    "contact_name": "Ada",
    "contact_email": "ada@example.com",
    "company_id": "c-1",
    "company_name": "Example Works",
    "application_type": "Reseller",
    "annual_revenue": "1,200,000",
    "use_case": "Support",
    "submitted_at": "2026-11-20",
}


def submission(**parts: Any) -> Submission:
    """A submission of one message, with these parts."""
    return Submission(**{"name": "test", "key": "id", "message": "Please review.", **parts})


def rendered(definition: Submission, row: dict[str, Any]) -> RenderedSubmission:
    """The row's request, which Halo's rules allow."""
    found = definition.render(row, row_key="1")
    CHECKS["/chat"](body(found))
    return found


def body(found: RenderedSubmission) -> dict[str, Any]:
    """The request as it goes out."""
    return json.loads(found.request.model_dump_json(exclude_none=True))


def entry_of(entry: Entry, row: dict[str, Any]) -> dict[str, Any]:
    """The context entry the row makes."""
    return body(rendered(submission(context={"form": entry}), row))["context"]["form"]


def refused(**parts: Any) -> str:
    """What the author of a DAG reads when its submission cannot work."""
    with pytest.raises(HaloConfigurationError) as caught:
        submission(**parts)
    return str(caught.value)


def row_error(definition: Submission, row: dict[str, Any]) -> RowError:
    """Why the row is rejected."""
    with pytest.raises(RowError) as caught:
        definition.render(row, row_key="1")
    return caught.value


def test_row_becomes_the_request_that_its_submission_describes() -> None:
    """The README's own example, field by field."""
    found = rendered(APPLICATION, APPLICATION_ROW)

    assert APPLICATION.row_key(APPLICATION_ROW) == "A-1"
    assert (found.row_key, found.user_id) == ("1", "u-1")
    assert body(found) == {
        "message": "New Reseller application from Ada at Example Works. Please review and follow up.",
        "user_id": "u-1",
        "company_id": "c-1",
        "context": {
            "application": {
                "label": "Partnership Application",
                "type": "custom",
                "value": {
                    "company_name": "Example Works",
                    "application_type": "Reseller",
                    "annual_revenue": "1,200,000",
                    "use_case": "Support",
                    "submitted_at": "2026-11-20",
                },
            }
        },
    }


def test_row_becomes_a_user_and_a_company() -> None:
    """With their traits, the company linked to the user."""
    user = APPLICATION.render_user(APPLICATION_ROW)
    company = APPLICATION.render_company(APPLICATION_ROW)

    assert (user.user_id, user.traits) == ("u-1", {"name": "Ada", "email": "ada@example.com"})
    assert (company.company_id, company.user_id, company.traits) == ("c-1", "u-1", {"name": "Example Works"})


def test_columns_are_those_the_chats_read() -> None:
    """Named before anything is sent, each once; traits alone are for the identify operator."""
    assert APPLICATION.columns == [
        "submission_id",
        "applicant_id",
        "company_id",
        "application_type",
        "contact_name",
        "company_name",
        "annual_revenue",
        "use_case",
        "submitted_at",
    ]
    assert APPLICATION.identity_columns == [
        "applicant_id",
        "contact_name",
        "contact_email",
        "company_id",
        "company_name",
    ]


def test_columns_of_labels_entries_and_custom_fields_are_read_too() -> None:
    """Wherever a column is named."""
    definition = submission(
        key=["a", "b"],
        context={
            "one": Entry(label="{c} of {d}", fields={"x": "e"}),
            "two": Entry(label="Two", type="list", column="f"),
            "all": Entry(label="All", fields="*"),
        },
        custom_fields={"y": "g"},
    )

    assert definition.columns == ["a", "b", "c", "d", "e", "f", "g"]


def test_anonymous_submission_names_no_user() -> None:
    """Without `user` nobody is named, and nobody is identified."""
    found = rendered(submission(), {"id": "1"})

    assert (found.user_id, body(found)) == (None, {"message": "Please review."})
    assert submission().render_user({"id": "1"}) is None


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_row_without_its_user_is_rejected(value: Any) -> None:
    """A named column that is empty does not make the row anonymous by accident."""
    error = row_error(submission(user=User(id="user")), {"id": "1", "user": value})

    assert error.column == "user"
    assert "fill it, or leave user out" in error.reason


def test_user_named_anonymous_stays_anonymous() -> None:
    """Halo's own word for nobody: sent as it is, and never identified."""
    definition = submission(user=User(id="user"), company=Company(id="company"))
    row = {"id": "1", "user": "anonymous", "company": "c"}

    assert rendered(definition, row).user_id == "anonymous"
    assert definition.render_user(row) is None
    assert definition.render_company(row).user_id is None


@pytest.mark.parametrize("value", [None, "", " "])
def test_row_without_company_is_still_sent(value: Any) -> None:
    """Not everybody belongs to one."""
    definition = submission(company=Company(id="company"))

    assert "company_id" not in body(rendered(definition, {"id": "1", "company": value}))
    assert definition.render_company({"id": "1", "company": value}) is None


def test_ids_of_numbers_have_no_fraction() -> None:
    """123 read through pandas is 123.0, and still the same user."""
    definition = submission(user=User(id="user"), company=Company(id="company"))

    found = body(rendered(definition, {"id": 1.0, "user": 123.0, "company": 45.0}))

    assert (found["user_id"], found["company_id"]) == ("123", "45")
    assert definition.row_key({"id": 1.0}) == "1"


def test_empty_traits_and_custom_fields_are_left_out() -> None:
    """An empty cell says nothing; sent, it would wipe what Halo knows."""
    definition = submission(
        user=User(id="id", traits={"name": "name", "plan": "plan", "seats": "seats", "trial": "trial"}),
        custom_fields={"name": "name", "plan": "plan", "seats": "seats", "trial": "trial"},
    )
    row = {"id": "1", "name": " ", "plan": None, "seats": 0, "trial": False}

    assert definition.render_user(row).traits == {"seats": 0, "trial": False}
    assert body(rendered(definition, row))["custom_fields"] == {"seats": 0, "trial": False}
    assert "custom_fields" not in body(rendered(definition, {**row, "seats": None, "trial": ""}))


def test_agent_of_the_submission_is_named() -> None:
    """It goes before the connection's."""
    assert body(rendered(submission(agent_id="agent_7"), {"id": "1"}))["agent_id"] == "agent_7"


@pytest.mark.parametrize("trait", sorted(USER_SYSTEM_FIELDS))
def test_system_managed_user_trait_is_refused_when_the_dag_is_parsed(trait: str) -> None:
    """Long before Halo would answer 400."""
    with pytest.raises(HaloConfigurationError, match=f"traits: '{trait}' is managed by Halo"):
        User(id="id", traits={trait: "column"})


@pytest.mark.parametrize("trait", sorted(COMPANY_SYSTEM_FIELDS))
def test_system_managed_company_trait_is_refused_when_the_dag_is_parsed(trait: str) -> None:
    """The same for companies."""
    with pytest.raises(HaloConfigurationError, match=f"traits: '{trait}' is managed by Halo"):
        Company(id="id", traits={trait: "column"})


@pytest.mark.parametrize(
    ("definition", "trait", "column"),
    [
        (User(id="id", traits={"renewal_status": "state"}), "renewal_status", "state"),
        (User(id="id", traits={"contract_term": "state"}), "contract_term", "state"),
    ],
)
def test_wrong_enumerated_trait_rejects_the_row_by_its_column(definition: User, trait: str, column: str) -> None:
    """The column to mend, the trait it feeds, the values there are, and not the value itself."""
    with pytest.raises(RowError, match=f"trait '{trait}' must be one of ") as caught:
        submission(user=definition).render_user({"id": "1", "state": "gone-for-good"})

    assert caught.value.column == column
    assert "gone-for-good" not in str(caught.value)


def test_too_large_traits_reject_the_row() -> None:
    """20,000 bytes are Halo's limit for a user."""
    definition = submission(user=User(id="id", traits={"note": "note"}))

    with pytest.raises(RowError, match="Halo accepts 20,000"):
        definition.render_user({"id": "1", "note": "é" * 10_000})


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ({"name": ""}, "name", "pattern"),
        ({"name": "two words"}, "name", "pattern"),
        ({"name": "a/b"}, "name", "pattern"),
        ({"name": "a\n"}, "name", "pattern"),
        ({"name": "x" * 101}, "name", "pattern"),
        ({"key": []}, "key", "at least 1 item"),
        ({"key": ""}, "key.0", "at least 1 character"),
        ({"key": ["a", ""]}, "key.1", "at least 1 character"),
        ({"user": {"id": ""}}, "user.id", "at least 1 character"),
        ({"user": {"id": "u", "trait": {}}}, "user.trait", "there is no such name"),
        ({"user": {"id": "u", "traits": {"name": ""}}}, "user.traits.name", "at least 1 character"),
        ({"user": {"id": "u", "traits": {"last_seen": "x"}}}, "user", "'last_seen' is managed by Halo"),
        ({"company": {"id": "c", "traits": {"team_size": "x"}}}, "company", "'team_size' is managed by Halo"),
        ({"message": ""}, "message", "at least 1 character"),
        ({"message": "Hello {"}, "message", "Single '{'"),
        ({"message": "Hello }"}, "message", "Single '}'"),
        ({"message": "Hello {}"}, "message", "only a column name may stand in braces"),
        ({"message": "Hello { }"}, "message", "only a column name may stand in braces"),
        ({"message": "Hello {name.first}"}, "message", "only a column name may stand in braces"),
        ({"message": "Hello {name[0]}"}, "message", "only a column name may stand in braces"),
        ({"message": "Hello {name.__class__}"}, "message", "only a column name may stand in braces"),
        ({"message": "Hello {name!r}"}, "message", "formats and conversions are not supported"),
        ({"message": "Hello {name:>20}"}, "message", "formats and conversions are not supported"),
        ({"message": "Hello {name:{width}}"}, "message", "formats and conversions are not supported"),
        ({"agent_id": ""}, "agent_id", "at least 1 character"),
        ({"escalate": "perhaps"}, "escalate", "valid boolean"),
        ({"custom_fields": {"a": ""}}, "custom_fields.a", "at least 1 character"),
        ({"mesage": "m"}, "mesage", "there is no such name"),
        ({"context": {"form": {"label": "Form"}}}, "context.form", "exactly one of fields and column"),
        (
            {"context": {"form": {"label": "Form", "fields": ["a"], "column": "b"}}},
            "context.form",
            "exactly one of fields and column",
        ),
        ({"context": {"form": {"label": "Form", "fields": []}}}, "context.form", "fields is empty"),
        ({"context": {"form": {"label": "Form", "fields": {}}}}, "context.form", "fields is empty"),
        ({"context": {"form": {"label": "Form", "fields": "all"}}}, "context.form.fields", "it must be '*'"),
        ({"context": {"form": {"label": "", "fields": "*"}}}, "context.form.label", "at least 1 character"),
        (
            {"context": {"form": {"label": "Form {a.b}", "fields": "*"}}},
            "context.form.label",
            "only a column name may stand in braces",
        ),
        ({"context": {"form": {"label": "Form", "type": "table", "fields": "*"}}}, "context.form.type", "'list'"),
        ({"context": {"": {"label": "Form", "fields": "*"}}}, "context", "at least 1 character"),
    ],
    ids=str,
)
def test_mistake_in_a_submission_is_named_when_the_dag_is_parsed(
    parts: dict[str, Any], field: str, reason: str
) -> None:
    """The field's whole path, and what is wrong with it."""
    text = refused(**parts)

    assert f"\n{field}" in text
    assert reason in text


def test_submission_cannot_change_once_it_is_checked() -> None:
    """What was checked is what runs."""
    with pytest.raises(ValidationError):
        APPLICATION.message = "other"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301 -- our own
def test_submission_survives_being_copied(copied: Any) -> None:
    """Airflow copies operators, with everything in them."""
    assert copied(APPLICATION).render(APPLICATION_ROW, row_key="1") == rendered(APPLICATION, APPLICATION_ROW)


@pytest.mark.parametrize(
    ("message", "row", "expected"),
    [
        ("Hello {name}!", {"name": "Ada"}, "Hello Ada!"),
        ("{name}{name}", {"name": "Ada"}, "AdaAda"),
        ("{{name}} is {name}", {"name": "Ada"}, "{name} is Ada"),
        ("{{{name}}}", {"name": "Ada"}, "{Ada}"),
        ("{name}", {"name": "{id} {name} {{x}} {0} {name.__class__}"}, "{id} {name} {{x}} {0} {name.__class__}"),
        ("{name}", {"name": "100 % {"}, "100 % {"),
        ("{Full Name} / {größe}", {"Full Name": "Ada", "größe": "M"}, "Ada / M"),
        ("{0}", {"0": "first"}, "first"),
        ("{n} {d} {b}", {"n": 5, "d": None, "b": True}, "5  true"),
        ("Line\n{name}", {"name": "a\nb"}, "Line\na\nb"),
    ],
)
def test_placeholders_hold_the_rows_values_and_nothing_else(message: str, row: dict[str, Any], expected: str) -> None:
    """Braces in values stay braces: a row cannot reach another column, let alone an attribute."""
    assert body(rendered(submission(message=message), {"id": "1", **row}))["message"] == expected


@given(st.text().filter(str.strip))
@settings(deadline=None)
def test_any_text_passes_through_a_placeholder_unchanged(value: str) -> None:
    """Whatever people write."""
    assert submission(message="{note}").render({"id": "1", "note": value}, row_key="1").request.message == value


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_empty_message_rejects_the_row(value: Any) -> None:
    """Halo requires one; the column that should have held it is named."""
    error = row_error(submission(message="{note}"), {"id": "1", "note": value})

    assert (error.column, error.reason) == ("note", "the message is empty for this row")


def test_message_is_as_long_as_halo_accepts() -> None:
    """10,000 characters pass, whatever they weigh."""
    assert len(body(rendered(submission(message="{note}"), {"id": "1", "note": "é" * 10_000}))["message"]) == 10_000


def test_too_long_message_names_the_longest_column() -> None:
    """How long it is, how much of it comes from where, and what to do; not what it says."""
    error = row_error(submission(message="{name}: {note}"), {"id": "1", "name": "Ada", "note": "secret word" * 1_000})

    assert error.column == "note"
    assert error.reason == (
        "the message has 11,005 characters (11,000 of them from this column), Halo accepts 10,000; shorten it"
    )


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("New order.", "New order. Please create a support ticket."),
        ("New order.  \n", "New order. Please create a support ticket."),
        ("New order. Please create a support ticket.", "New order. Please create a support ticket."),
        ("I need human help with my order", "I need human help with my order"),
        ("PLEASE ESCALATE THIS order!", "PLEASE ESCALATE THIS order!"),
    ],
)
def test_escalation_asks_for_a_human_once(message: str, sent: str) -> None:
    """In Halo's own words, unless the message already does, and only where it is wanted."""
    assert body(rendered(submission(message=message, escalate=True), {"id": "1"}))["message"] == sent
    assert body(rendered(submission(message=message), {"id": "1"}))["message"] == message


def test_escalation_in_a_rows_own_words_is_not_repeated() -> None:
    """A customer who asks for a human has asked."""
    definition = submission(message="{note}", escalate=True)

    assert (
        body(rendered(definition, {"id": "1", "note": "Please escalate this!"}))["message"] == "Please escalate this!"
    )


def test_escalation_counts_towards_the_limit() -> None:
    """The words we add must fit as well."""
    definition = submission(message="{note}", escalate=True)
    room = 10_000 - len(" Please create a support ticket.")

    assert len(body(rendered(definition, {"id": "1", "note": "x" * room}))["message"]) == 10_000
    assert "shorten it" in row_error(definition, {"id": "1", "note": "x" * (room + 1)}).reason


def test_fields_may_be_renamed() -> None:
    """{name: column}."""
    assert entry_of(Entry(label="Form", fields={"company": "company_name"}), {"id": "1", "company_name": "Ex"}) == {
        "label": "Form",
        "value": {"company": "Ex"},
    }


def test_star_takes_every_column_of_the_row() -> None:
    """Except what a rejects file added: a repaired row is the row it was."""
    row = {"id": "1", "a": "x", "b": None, "_row": "7", "_field": "a", "_reason": "was empty"}

    assert entry_of(Entry(label="Form", fields="*"), row)["value"] == {"id": "1", "a": "x", "b": None}


def test_object_of_a_list_type_stands_in_a_list() -> None:
    """The documented value of list and error is a list of items."""
    for kind in ("list", "error"):
        entry = entry_of(Entry(label="Problem", type=kind, fields=["area"]), {"id": "1", "area": "billing"})
        assert entry == {"label": "Problem", "type": kind, "value": [{"area": "billing"}]}


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ('[{"name": "Desk", "quantity": 2, "amount": 49.9}]', [{"name": "Desk", "quantity": 2, "amount": 49.9}]),
        ('{"name": "Desk"}', [{"name": "Desk"}]),
        ('"Desk"', ["Desk"]),
        ("[]", []),
        ([{"name": "Desk"}], [{"name": "Desk"}]),
        ({"name": "Desk"}, [{"name": "Desk"}]),
        (None, None),
    ],
)
def test_column_of_a_list_type_becomes_a_list(value: Any, items: Any) -> None:
    """JSON text from a file and a JSON column of a database come to the same."""
    assert entry_of(Entry(label="Items", type="list", column="items"), {"id": "1", "items": value})["value"] == items


@pytest.mark.parametrize("value", ["", "Desk", '{"name": Desk}', "[1, 2", "[NaN]", "[1e999]", '["\\ud800"]'])
def test_column_of_a_list_type_that_is_no_json_rejects_the_row(value: str) -> None:
    """By its column, and without repeating it."""
    error = row_error(
        submission(context={"items": Entry(label="Items", type="list", column="items")}), {"id": "1", "items": value}
    )

    assert error.column == "items"
    assert "Desk" not in str(error)


@pytest.mark.parametrize("value", ["[1, 2]", "text", None, 7, {"a": [1]}])
def test_column_of_another_type_is_taken_as_it_is(value: Any) -> None:
    """JSON text stays text where nobody asked for a list."""
    for kind in (None, "custom", "metric"):
        assert entry_of(Entry(label="Note", type=kind, column="note"), {"id": "1", "note": value})["value"] == value


def test_label_may_hold_placeholders() -> None:
    """Labels are headers in the prompt: specific ones."""
    entry = Entry(label="Order {number} {{new}}", column="note")

    assert entry_of(entry, {"id": "1", "number": 17, "note": "n"})["label"] == "Order 17 {new}"


def test_empty_label_rejects_the_row() -> None:
    """Halo needs a header; its column is named."""
    error = row_error(
        submission(context={"form": Entry(label="{title}", column="note")}), {"id": "1", "title": " ", "note": "n"}
    )

    assert (error.column, error.reason) == ("title", "the entry's label is empty for this row")


@pytest.mark.parametrize(
    "definition",
    [
        submission(message="{note}"),
        submission(context={"form": Entry(label="{note}", column="id")}),
        submission(context={"form": Entry(label="Form", column="note")}),
        submission(context={"form": Entry(label="Form", type="list", column="note")}),
        submission(context={"form": Entry(label="Form", fields=["note"])}),
        submission(context={"form": Entry(label="Form", fields="*")}),
        submission(custom_fields={"note": "note"}),
        submission(user=User(id="note")),
        submission(company=Company(id="note")),
    ],
)
@pytest.mark.parametrize(("value", "reason"), [(b"binary", "binary values"), ("half \ud83d", "not valid Unicode")])
def test_value_that_cannot_be_sent_is_named_by_its_column(definition: Submission, value: Any, reason: str) -> None:
    """Wherever the column is used."""
    error = row_error(definition, {"id": "1", "note": value})

    assert error.column == "note"
    assert reason in error.reason


def test_column_name_that_is_no_unicode_rejects_the_row() -> None:
    """As a header read in the wrong encoding leaves it; sent whole by "*"."""
    error = row_error(submission(context={"form": Entry(label="Form", fields="*")}), {"id": "1", "pr\udce9nom": "Ada"})

    assert "not valid Unicode" in error.reason


def test_too_large_custom_fields_reject_the_row() -> None:
    """10,000 characters are Halo's limit."""
    error = row_error(submission(custom_fields={"note": "note"}), {"id": "1", "note": "x" * 10_000})

    assert "Halo accepts 10,000" in error.reason
    assert "xxx" not in str(error)


cells = st.sampled_from(["", "a", "A", " a", 1, "1", 1.0, None, True])
rows = st.fixed_dictionaries({"id": st.just("1"), "a": cells, "b": cells, "unused": cells})
HASHED = submission(
    message="Hello {a}",
    context={"form": Entry(label="Form", fields={"b": "b"})},
    custom_fields={"b": "b"},
)


@settings(deadline=None, max_examples=300)
@given(rows, rows)
def test_payload_hash_changes_when_and_only_when_the_request_does(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A rejected row is tried again only when its request changed: neither less nor more often."""
    first, second = rendered(HASHED, one), rendered(HASHED, other)

    same = json.dumps(body(first)) == json.dumps(body(second))
    assert (first.payload_hash == second.payload_hash) is same


def test_payload_hash_is_about_the_submission_too() -> None:
    """Another message, agent or label is another request."""
    variants = [
        submission(),
        submission(message="Please look."),
        submission(escalate=True),
        submission(agent_id="agent_7"),
        submission(user=User(id="id")),
        submission(context={"form": Entry(label="Form", column="id")}),
        submission(context={"form": Entry(label="Other", column="id")}),
        submission(context={"form": Entry(label="Form", type="custom", column="id")}),
    ]

    assert len({rendered(variant, {"id": "1"}).payload_hash for variant in variants}) == len(variants)


def test_payload_hash_is_the_same_in_every_process() -> None:
    """A set has no order of its own; the request made of it has, or a rejected row would be sent again each time."""
    definition = submission(context={"form": Entry(label="Form", column="tags")})
    orders = [["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]

    assert len({rendered(definition, {"id": "1", "tags": set(order)}).payload_hash for order in orders}) == 1
    assert body(rendered(definition, {"id": "1", "tags": set("bca")}))["context"]["form"]["value"] == ["a", "b", "c"]


READY_MADE: list[tuple[Submission, dict[str, Any], dict[str, Any], str]] = [
    (
        Submission.application(),
        {
            "submission_id": "A-1",
            "applicant_id": "u-1",
            "applicant_name": "Ada",
            "company": "Example Works",
            "type": "Reseller",
            "details": "Two regions",
        },
        {
            "application": {
                "label": "Application",
                "type": "custom",
                "value": {
                    "applicant_name": "Ada",
                    "company": "Example Works",
                    "type": "Reseller",
                    "details": "Two regions",
                },
            }
        },
        "New Reseller application from Ada at Example Works. Please review and follow up.",
    ),
    (
        Submission.cancellation(),
        {
            "cancellation_id": "C-1",
            "customer_id": "u-1",
            "customer_name": "Ada",
            "plan": "Pro",
            "reason": "Too dear",
            "mrr_lost": 49.0,
            "cancelled_at": "2026-11-20",
        },
        {
            "cancellation": {
                "label": "Cancellation",
                "type": "custom",
                "value": {
                    "customer_name": "Ada",
                    "plan": "Pro",
                    "reason": "Too dear",
                    "mrr_lost": 49.0,
                    "cancelled_at": "2026-11-20",
                },
            }
        },
        "Ada cancelled the Pro plan. Reason: Too dear. Please review and follow up.",
    ),
    (
        Submission.support_request(),
        {"request_id": "S-1", "user_id": "u-1", "area": "Billing", "message": "Charged twice"},
        {
            "support_request": {
                "label": "Support Request",
                "type": "error",
                "value": [{"area": "Billing", "message": "Charged twice"}],
            }
        },
        "Support request about Billing: Charged twice",
    ),
    (
        Submission.feature_request(),
        {
            "request_id": "F-1",
            "user_id": "u-1",
            "title": "Dark mode",
            "description": "For the night",
            "priority": "low",
            "requested_by": "Ada",
        },
        {
            "feature_request": {
                "label": "Feature Request",
                "type": "custom",
                "value": {
                    "title": "Dark mode",
                    "description": "For the night",
                    "priority": "low",
                    "requested_by": "Ada",
                },
            }
        },
        "Feature request from Ada: Dark mode. Please review and follow up.",
    ),
    (
        Submission.order(),
        {"order_id": "O-1", "customer_id": "u-1", "items": '[{"name": "Desk", "quantity": 2, "amount": 49.9}]'},
        {
            "order": {
                "label": "Order Items",
                "type": "list",
                "value": [{"name": "Desk", "quantity": 2, "amount": 49.9}],
            }
        },
        "New order O-1. Please review and follow up.",
    ),
    (
        Submission.onboarding_request(),
        {
            "request_id": "B-1",
            "user_id": "u-1",
            "company": "Example Works",
            "plan": "Pro",
            "requested_services": ["training", "import"],
            "preferred_start_date": "2027-01-04",
            "contact": "ada@example.com",
        },
        {
            "onboarding_request": {
                "label": "Onboarding Request",
                "type": "custom",
                "value": {
                    "company": "Example Works",
                    "plan": "Pro",
                    "requested_services": ["training", "import"],
                    "preferred_start_date": "2027-01-04",
                    "contact": "ada@example.com",
                },
            }
        },
        "Example Works asks for onboarding on the Pro plan, starting 2027-01-04. Please review and follow up.",
    ),
]


@pytest.mark.parametrize(
    ("definition", "row", "context", "message"), READY_MADE, ids=[definition.name for definition, *_ in READY_MADE]
)
def test_ready_made_submission_follows_halos_pattern(
    definition: Submission, row: dict[str, Any], context: dict[str, Any], message: str
) -> None:
    """Key, type and fields of Halo's documentation, and no column but the documented ones and the two ids."""
    found = body(rendered(definition, row))

    assert found == {"message": message, "user_id": "u-1", "context": context}
    assert set(definition.columns) == set(row)
    assert definition.row_key(row).endswith("-1")


@pytest.mark.parametrize("make", [Submission.application, Submission.order, Submission.support_request])
def test_every_part_of_a_ready_made_submission_can_be_replaced(make: Any) -> None:
    """What is given goes before what is ready."""
    parts = {
        "name": "mine",
        "key": ("a", "b"),
        "user": None,
        "company": Company(id="company"),
        "message": "Mine {a}",
        "context": {"mine": Entry(label="Mine", fields="*")},
        "escalate": True,
        "agent_id": "agent_7",
        "custom_fields": {"c": "c"},
    }

    assert {name: getattr(make(**parts), name) for name in parts} == parts


def test_ready_made_submission_is_checked_like_any_other() -> None:
    """A misspelt part is named."""
    with pytest.raises(HaloConfigurationError, match="mesage"):
        Submission.application(mesage="m")


def test_masked_request_shows_its_shape_and_no_value() -> None:
    """For people to look at before anything is sent: ids and our own words stay, letters become x, digits 0."""
    definition = submission(
        user=User(id="user"),
        message="From {name}, {size} seats.",
        context={
            "form": Entry(label="Form of {name}", type="custom", fields=["name", "size", "note", "paid", "gone"]),
            "empty": Entry(label="Empty", column="gone"),
        },
        custom_fields={"mail": "mail"},
    )
    row = {
        "id": "1",
        "user": "u-1",
        "name": "Ada É.",
        "size": 42,
        "note": {"tags": ["x1", "b-2"]},
        "paid": True,
        "gone": None,
        "mail": "ada@example.com",
    }

    assert masked(definition, rendered(definition, row), row) == {
        "row_key": "1",
        "user_id": "u-1",
        "message": "From xxx x., 00 seats.",
        "context": {
            "form": {
                "label": "Form of xxx x.",
                "type": "custom",
                "value": {"name": "xxx x.", "size": 0, "note": {"tags": ["x0", "x-0"]}, "paid": True, "gone": None},
            },
            "empty": {"label": "Empty", "value": None},
        },
        "custom_fields": {"mail": "xxx@xxxxxxx.xxx"},
    }


def test_row_that_follows_another_knows_its_key() -> None:
    """Made as that submission's own keys are; no key where a part of it is empty."""
    definition = submission(follows=("order", ["shop", "order"]))

    assert definition.columns == ["id", "shop", "order"]
    assert definition.follows_key({"id": "1", "shop": "a|b", "order": 17.0}) == "a\\|b|17"
    assert definition.follows_key({"id": "1", "shop": "a", "order": ""}) is None
    assert submission(follows=("order", "order")).follows_key({"order": "a|b"}) == "a|b"
    assert submission().follows_key({"id": "1"}) is None


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"follows": ("an order", "order")}, "follows.0"),
        ({"follows": ("order", "")}, "follows.1.0"),
        ({"follows": ("order", [])}, "follows.1"),
        ({"follows": "order"}, "follows"),
        ({"follows_missing": "wait"}, "follows_missing"),
    ],
)
def test_mistake_in_what_is_followed_is_named_when_the_dag_is_parsed(parts: dict[str, Any], field: str) -> None:
    """The part of `follows` that cannot be right."""
    assert f"\n{field}: " in refused(**parts)


def test_reference_names_the_row_and_its_content() -> None:
    """Another content has another one, and turning references on is no change of the rows."""
    plain = Submission(name="note", key="id", message="{text}", context={"note": Entry(label="Note", fields=["id"])})
    referenced = plain.model_copy(update={"reference": True})
    first, second = ({"id": "SUB-1", "text": text} for text in ("One.", "Two."))

    sent = rendered(referenced, first)

    assert sent.payload_hash == rendered(plain, first).payload_hash
    assert sent.request.context is not None
    entry = sent.request.context["reference"]
    assert (entry.label, entry.value) == ("Reference", sent.reference)
    assert sent.reference == f"airflow:note/1/{sent.payload_hash[:12]}"
    assert rendered(referenced, second).reference != sent.reference
    assert set(sent.request.context) == {"note", "reference"}


def test_reference_keeps_its_place_in_the_context() -> None:
    """A submission's own entry of that name would be lost."""
    with pytest.raises(
        HaloConfigurationError, match="reference=True adds a context entry 'reference' itself; rename yours"
    ):
        Submission(
            name="note", key="id", message="x", reference=True, context={"reference": Entry(label="x", fields=["id"])}
        )


def test_masked_request_shows_the_reference() -> None:
    """It holds the row's key, which logs hold anyway."""
    referenced = Submission(name="note", key="id", message="{text}", reference=True)
    row = {"id": "SUB-1", "text": "Secret words"}

    shown = masked(referenced, rendered(referenced, row), row)

    assert shown["context"]["reference"]["value"].startswith("airflow:note/1/")
    assert "Secret" not in str(shown)
