"""User tokens: HS256 JWTs signed with the workspace's identity secret (Halo's identity verification)."""

import time
from typing import Any

import jwt

from halo_provider.simulator.rules import Json, Refused

ALGORITHM = "HS256"
UPDATE_SCOPE = "users.update"
LONGEST_UPDATE_TOKEN = 3_600  # seconds ahead


def check_user_token(token: str, *, secret: str, user_id: str | None) -> None:
    """Raise Refused unless `token` proves to be `user_id`; ``sub`` is accepted in place of the claim user_id."""
    claims = _verified(token, secret=secret)
    if user_id is None or claims.get("user_id", claims.get("sub")) != user_id:
        raise Refused(403, "user_token belongs to another user_id")


def check_update_token(token: str | None, *, secret: str | None) -> None:
    """Raise Refused unless `token` allows bulk updates: scope, and an expiry at most an hour ahead."""
    if token is None:
        raise Refused(403, "user_token with the scope users.update is required")
    if secret is None:
        raise Refused(403, "this workspace has no identity secret to verify user_token with")
    claims = _verified(token, secret=secret)
    if claims.get("scope") != UPDATE_SCOPE:
        raise Refused(403, "user_token lacks the scope users.update")
    if "user_id" in claims:
        raise Refused(403, "user_token for users.update must not name a user_id")
    if "exp" not in claims:
        raise Refused(403, "user_token for users.update must expire")
    if int(claims["exp"]) > time.time() + LONGEST_UPDATE_TOKEN:
        raise Refused(403, "user_token for users.update must expire within an hour")


def unverified_claims(token: Any) -> Json | None:
    """Return what `token` claims, for the record: a token itself is never kept. None when it is no JWT."""
    try:
        claims: Json = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    return claims


def _verified(token: str, *, secret: str) -> Json:
    try:
        claims: Json = jwt.decode(token, secret, algorithms=[ALGORITHM])
    except jwt.ExpiredSignatureError:
        raise Refused(403, "user_token has expired") from None
    except jwt.PyJWTError:
        raise Refused(403, "user_token is not valid") from None
    return claims
