"""What an answer of Halo means: the model of a success, or the typed error of everything else."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from halo_provider.client.body import MAX_BODY, Body
from halo_provider.client.masking import masked_words
from halo_provider.exceptions import (
    HaloAuthenticationError,
    HaloPermissionError,
    HaloProxyAuthenticationError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloRejectedError,
    HaloResponseError,
    HaloServerError,
    HaloStatusError,
)
from halo_provider.models import Request

MAX_RETRY_AFTER = 86_400.0  # seconds: a longer Retry-After counts as one day

# What an error may quote: ids that logs hold anyway, and words of the submission that say what a value is.
_NOT_PRIVATE = frozenset({"user_id", "company_id", "session_id", "agent_id", "user_token", "mode", "label", "type"})
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
AnswerT = TypeVar("AnswerT", bound=BaseModel)


def read_answer(
    path: str, response: httpx.Response, body: Body, model: type[AnswerT], *, url: str, request: Request
) -> AnswerT:
    """The answer of `url` to the request, as its model.

    Raises HaloStatusError for a status outside 2xx, HaloResponseError for a success without what Halo documents. What
    these quote of the request is masked.
    """
    if not response.is_success:
        wait = retry_after(response.headers.get("retry-after"), now=_answered_at(response))
        words = masked_words(error_message(body.content), values=request_texts(request))
        raise status_error(path, status=response.status_code, words=words, wait=wait, url=url)
    try:
        if body.whole:
            return model.model_validate_json(body.content)
        reason = f"the answer is larger than {MAX_BODY:,} bytes"
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
        reason = f"the answer has no usable {place}" if place else "the answer is not a JSON object"
    words = body.content.decode("utf-8", errors="replace")
    raise HaloResponseError(path, reason=reason, reply=masked_words(words, values=request_texts(request)))


def request_texts(request: Request) -> Iterator[str]:
    """What a request says of people and their business: everything but ids, tokens and the names of fields."""
    left: list[Any] = [request.model_dump(mode="json", exclude_none=True)]
    while left:
        match left.pop():
            case dict(fields):
                left += [value for name, value in fields.items() if name not in _NOT_PRIVATE]
            case list(items):
                left += items
            case bool():
                continue
            case value:
                yield str(value)


def retry_after(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks to wait, at most MAX_RETRY_AFTER; None if it names no time.

    RFC 9110 has whole seconds and HTTP-dates; a fraction of a second is understood too.
    """
    if header is None:
        return None
    if _SECONDS.fullmatch(seconds := header.strip()):
        return min(float(seconds), MAX_RETRY_AFTER)
    timestamp = _http_date(header)
    if timestamp is None:
        return None
    return min(max(0.0, (timestamp - now).total_seconds()), MAX_RETRY_AFTER)


def _answered_at(response: httpx.Response) -> datetime:
    """When the server answered, by its own clock, which its dates go by: this host's may be off."""
    return _http_date(response.headers.get("date", "")) or datetime.now(UTC)


def _http_date(header: str) -> datetime | None:
    try:
        timestamp = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)


def error_message(content: bytes) -> str:
    """Halo's text in an error answer, whose shape it does not document: ``error`` or ``message``, else the whole."""
    try:
        body: Any = from_json(content)
    except ValueError:
        body = None
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    if isinstance(body, str) and body.strip():
        return body.strip()
    return content.decode("utf-8", errors="replace").strip() or "no message"


def status_error(path: str, *, status: int, words: str, wait: float | None, url: str) -> HaloStatusError:
    """The typed error of an answer that is not a success."""
    match status:
        case 401:
            kind: type[HaloStatusError] = HaloAuthenticationError
        case 403:
            kind = HaloPermissionError
        case 407:
            kind = HaloProxyAuthenticationError
        case 429:
            kind = HaloRateLimitError
        case 408 | 425:
            kind = HaloServerError
        case _ if 400 <= status < 500:  # noqa: PLR2004 -- the class of client errors
            kind = HaloRejectedError
        case _ if 300 <= status < 400:  # noqa: PLR2004 -- the class of redirects
            kind = HaloRedirectError
        case _:
            kind = HaloServerError
    return kind(path, status=status, message=words, retry_after=wait, url=url)
