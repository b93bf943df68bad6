"""What the errors say, what they keep to themselves, and what each means for the request it is about."""

import inspect
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_provider import exceptions
from halo_provider.exceptions import (
    MAX_ERROR_TEXT,
    AccountingError,
    DeliveryIncompleteError,
    HaloAuthenticationError,
    HaloConfigurationError,
    HaloConnectionError,
    HaloError,
    HaloPermissionError,
    HaloProxyAuthenticationError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloRejectedError,
    HaloResponseError,
    HaloServerError,
    HaloStatusError,
    HaloWrongUrlError,
    IdentifyIncompleteError,
    LedgerError,
    RowError,
    RowsChangedError,
    RowsRejectedError,
    SourceError,
    TooManySubmissionsError,
    Verdict,
    redact,
)

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoidSJ9.c2lnbmF0dXJlX29mX3RoZV90b2tlbg"
SECRETS = ("ab_live_example_widget_key", "ha_secret_example_identity_secret", TOKEN)


def drawn_tree() -> dict[str, str]:
    """Each error's parent, as the module's docstring draws it."""
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in inspect.getdoc(exceptions).splitlines()[2:]:
        prefix, name = re.fullmatch(r"([│├└─ ]*)(\w+).*", line).groups()
        del branch[len(prefix) // 4 :]
        if branch:
            parents[name] = branch[-1]
        branch.append(name)
    return parents


def test_error_tree_is_the_one_drawn() -> None:
    """The module's docstring draws every error under its parent, and no other."""
    errors = {
        name: kind for name, kind in vars(exceptions).items() if isinstance(kind, type) and issubclass(kind, HaloError)
    }

    assert drawn_tree() == {name: kind.__base__.__name__ for name, kind in errors.items() if kind is not HaloError}


def test_configuration_error_is_a_value_error() -> None:
    """Whoever knows only Python's own errors catches it as the one it is."""
    assert issubclass(HaloConfigurationError, ValueError)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text",
    ["{}", "Bearer {}", "Bearer%20{}", "key={}&x=1", '{{"detail": ["bad\\n{}"]}}', "_{}.", "{} {}"],
)
def test_secrets_are_redacted_wherever_they_stand(text: str, secret: str) -> None:
    """Keys, secrets and tokens become ***, whatever is glued to their front."""
    redacted = redact(text.format(secret, secret))

    assert secret not in redacted
    assert "***" in redacted


def test_other_text_is_left_alone() -> None:
    """Words that only look a little like a secret stay readable."""
    text = "The key must begin with ab_live_ or ha_secret_; eyJ alone is no token, nor is v1.2.3."

    assert redact(text) == text


PLAIN_SECRET = re.compile(r"(?:ab_live_|ha_secret_)[\w-]+|eyJ[\w-]+\.[\w-]+\.[\w-]*")


@given(st.lists(st.sampled_from(["eyJ", "ab_live_", "ha_secret_", "a", "-", ".", " ", "é"]), max_size=20).map("".join))
def test_redaction_finds_what_the_plain_expression_finds(text: str) -> None:
    """It is quicker, and otherwise the same."""
    assert redact(text) == PLAIN_SECRET.sub("***", text)


@pytest.mark.parametrize(
    "text", ["eyJ", "eyJ.", "eyJa.", "eyJa.b ", "ab_live_", "eyJ_ab_live_", "eyJx.y.z", "eyJ-", "a"]
)
def test_redaction_takes_time_in_proportion_to_the_text(text: str) -> None:
    """A text made to be slow took minutes, in which the loop stood still."""
    began = time.thread_time()

    redact(text * (1_000_000 // len(text)))

    assert time.thread_time() - began < 2.0


def test_reason_of_a_lost_connection_is_shortened() -> None:
    """A transport's error may be as long as it likes."""
    assert HaloConnectionError("/chat", sent=True, reason="x" * 10_000).reason == "x" * MAX_ERROR_TEXT


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kept", [9, 30, 60])
def test_secret_at_the_end_of_a_shortened_text_is_not_shown_in_part(secret: str, kept: int) -> None:
    """Shortening comes after redaction: half a token would pass for harmless text."""
    text = "x" * (MAX_ERROR_TEXT - kept) + secret

    for error in (
        HaloStatusError("/chat", status=400, message=text),
        HaloResponseError("/chat", reason="the answer has no usable session_id", reply=text),
    ):
        shown = f"{error} {getattr(error, 'message', '')} {getattr(error, 'reply', '')}"
        assert secret[:9] not in shown


def test_halos_words_are_shortened() -> None:
    """An error page does not become an error message as a whole."""
    error = HaloStatusError("/chat", status=500, message="x" * 10_000)

    assert error.message == "x" * MAX_ERROR_TEXT
    assert len(str(error)) < MAX_ERROR_TEXT + 100


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (HaloConnectionError("/chat", sent=False, reason="refused"), Verdict.NOT_ACCEPTED),
        (HaloConnectionError("/chat", sent=True, reason="lost"), Verdict.IN_DOUBT),
        (HaloResponseError("/chat", reason="no session_id", reply=""), Verdict.IN_DOUBT),
        (HaloAuthenticationError("/chat", status=401, message=""), Verdict.FORBIDDEN),
        (HaloPermissionError("/chat", status=403, message=""), Verdict.FORBIDDEN),
        (HaloRedirectError("/chat", status=307, message=""), Verdict.FORBIDDEN),
        (HaloRejectedError("/chat", status=400, message=""), Verdict.REJECTED),
        (HaloRateLimitError("/chat", status=429, message=""), Verdict.NOT_ACCEPTED),
        (HaloServerError("/chat", status=500, message=""), Verdict.IN_DOUBT),
        (HaloServerError("/chat", status=503, message=""), Verdict.IN_DOUBT),
        (HaloServerError("/chat", status=503, message="", retry_after=0.0), Verdict.NOT_ACCEPTED),
        (HaloServerError("/chat", status=502, message="", retry_after=1.0), Verdict.IN_DOUBT),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'status', '')}",
)
def test_each_failed_call_has_its_verdict(error: exceptions.HaloCallError, verdict: Verdict) -> None:
    """What is known about the request after each kind of failure."""
    assert error.verdict is verdict


def incomplete(*, retry_after: float | None) -> DeliveryIncompleteError:
    """A run that left rows over."""
    return DeliveryIncompleteError(failed=1, in_doubt=0, not_attempted=2, reason=None, retry_after=retry_after)


@pytest.mark.parametrize(
    "error",
    [
        HaloConfigurationError("timeout must be more than 0"),
        HaloAuthenticationError("/chat", status=401, message=""),
        HaloPermissionError("/chat", status=403, message=""),
        HaloProxyAuthenticationError("/chat", status=407, message=""),
        HaloRedirectError("/chat", status=307, message=""),
        HaloRejectedError("/chat", status=400, message=""),
        HaloWrongUrlError("/chat", status=404, message=""),
        RowsChangedError(changed=1, first="a"),
        RowsRejectedError(rejected=1, read=2, first="row 2: no key", rejects_path=None),
        TooManySubmissionsError(would_send=3, max_submissions=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_retry_cannot_help_where_somebody_has_to_change_something(error: HaloError) -> None:
    """The connection, the parameters or the rows: until then every try fails in the same way."""
    assert not error.retry_can_help


@pytest.mark.parametrize(
    "error",
    [
        HaloError("anything else"),
        SourceError("applications.csv: No such file or directory"),
        RowError("too long; shorten it"),
        HaloConnectionError("/chat", sent=False, reason="refused"),
        HaloConnectionError("/chat", sent=True, reason="lost"),
        HaloResponseError("/chat", reason="no session_id", reply=""),
        HaloRateLimitError("/chat", status=429, message=""),
        HaloServerError("/chat", status=500, message=""),
        HaloServerError("/chat", status=503, message="", retry_after=0.0),
        LedgerError("the ledger cannot be used: locked"),
        AccountingError({"read": 3, "delivered": 2}),
        IdentifyIncompleteError("429"),
        incomplete(retry_after=None),
        incomplete(retry_after=60.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_retry_can_help_wherever_the_cause_may_pass(error: HaloError) -> None:
    """Also where nobody can know."""
    assert error.retry_can_help


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (HaloAuthenticationError("/chat", status=401, message="no"), "connection's password"),
        (HaloPermissionError("/chat", status=403, message="no"), "identity_secret"),
        (HaloRedirectError("/chat", status=301, message="no"), "connection's host"),
    ],
)
def test_what_stops_everything_names_its_remedy(error: HaloStatusError, remedy: str) -> None:
    """An error that only a person can put right says where."""
    assert remedy in str(error)


WRONG_URL = "https://halo.example.com/v1/chat"


@pytest.mark.parametrize(
    ("status", "suggests"),
    [
        *((status, True) for status in (301, 302, 307, 308, 404, 405, 410, 415, 501)),
        *((status, False) for status in (400, 401, 403, 408, 409, 413, 422, 429, 500, 502, 503, 504)),
    ],
)
def test_status_of_a_server_that_is_not_halo_is_known(status: int, suggests: bool) -> None:  # noqa: FBT001 -- a parameter
    """The text names the address and the place to correct it where another server may have answered."""
    error = HaloStatusError("/chat", status=status, message="no", url=WRONG_URL)

    assert error.suggests_wrong_url is suggests
    assert (WRONG_URL in str(error)) is suggests
    assert ("connection's host" in str(error)) is suggests


@pytest.mark.parametrize("kind", [HaloRejectedError, HaloServerError, HaloRedirectError])
def test_answer_of_another_server_is_about_the_connection(kind: type[HaloStatusError]) -> None:
    """It stops everything, says which address answered what, and what to correct."""
    error = kind("/chat", status=404, message="Not Found", retry_after=7.0, url=WRONG_URL).as_wrong_url()

    assert (type(error), error.verdict, error.retry_can_help) == (HaloWrongUrlError, Verdict.FORBIDDEN, False)
    assert (error.path, error.status, error.message, error.retry_after) == ("/chat", 404, "Not Found", 7.0)
    assert error.brief == f"{WRONG_URL} answered 404"
    assert str(error) == (
        f"{WRONG_URL} answered 404: Not Found. This is not Halo's SDK API: "
        "correct the base URL in the connection's host. "
        "Rows that such answers rejected in earlier runs come back with `halo-ledger requeue`, or on the run's page."
    )


@pytest.mark.parametrize(("sent", "outcome"), [(True, "unknown"), (False, "not sent")])
def test_connection_error_says_what_became_of_the_request(sent: bool, outcome: str) -> None:  # noqa: FBT001 -- a parameter
    """The reader learns whether Halo may have taken it."""
    assert outcome in str(HaloConnectionError("/chat", sent=sent, reason="refused"))


def test_row_error_text_holds_no_value_of_the_row() -> None:
    """`detail`, which may hold values, is for the rejects file and never part of the text."""
    error = RowError("too long; shorten it", column="note", detail="the note itself")

    assert str(error) == "column 'note': too long; shorten it"
    assert "the note itself" not in repr(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AccountingError({"read": 3, "delivered": 2}), ["'read': 3", "'delivered': 2", "report this"]),
        (
            DeliveryIncompleteError(failed=1, in_doubt=2, not_attempted=3, reason="429", retry_after=None),
            ["1 rows failed", "2 are in doubt", "3 were not attempted", "429", "Run the task again"],
        ),
        (
            DeliveryIncompleteError(failed=1, in_doubt=0, not_attempted=0, reason=None, retry_after=None),
            ["not attempted. Run"],
        ),
        (
            RowsRejectedError(rejected=2, read=9, first="row 3: empty", rejects_path="rejects.csv"),
            ["2 of 9", "rejects.csv", "row 3: empty", "Repair"],
        ),
        (RowsRejectedError(rejected=1, read=1, first="row 1", rejects_path=None), ["set rejects_path"]),
        (TooManySubmissionsError(would_send=1_200, max_submissions=1_000), ["1,200", "1,000", "nothing was sent"]),
    ],
)
def test_error_that_ends_a_run_tells_counts_reason_and_next_step(error: HaloError, words: list[str]) -> None:
    """Counts, the first reason, and what to do next."""
    for word in words:
        assert word in str(error)
