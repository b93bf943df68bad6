"""How Halo's MCP server and its sign-in behave: a description, in Python or JSON, that can be replaced at any time.

Halo documents the tools' names, and neither their arguments, nor their results, nor how soon a conversation can be
found. So each of these can be chosen::

    Reading(variant="text", lag=(0, 10), page_size=5, white_space="collapsed")
    Reading(enabled=False)  # 403: switched off for the workspace

On the command line, and to POST /_simulator/reading, it is the same as JSON::

    {"variant": "paged", "lag": [0, 10], "limit": {"kind": "token_bucket", "rate": 5}}

What goes wrong with single calls is a fault (``halo_provider.simulator.faults``), ordered for a tool or an address:
"/api/mcp/data_search_transcripts", "/api/mcp" for every method, "/oauth/token".
"""

import zlib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from halo_provider.simulator.limits import AnyLimit

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SecondsOrRange = Seconds | tuple[Seconds, Seconds]
Variant = Literal["structured", "text", "paged", "prose"]
WhiteSpace = Literal["kept", "trimmed", "collapsed", "lines"]


class Reading(BaseModel):
    """What a reader of this workspace meets.

    `variant` is how arguments are named and results are shaped (``halo_provider.simulator.variants`` lists them).
    `lag` is the seconds until a message can be found, one number, or a range of which each message has its own part;
    tickets appear with the message that made them. `latency` is that of each call. A search gives at most `page_size`
    records at once. `white_space` is what Halo did to the messages: nothing; cut off at both ends; made one space of
    every run; or ended every line with a space, a carriage return and a line feed. With `event_stream` answers come as
    events. Not `enabled` is 403. `limit` concerns calls with a valid token, apart from the SDK's.

    `access_lifetime` is in seconds of the simulator's clock. `consent` is what happens at the authorization endpoint: a
    page for a person, or an answer at once. `registrations` are those an address may make in an hour.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Variant = "structured"
    lag: SecondsOrRange = 0.0
    latency: SecondsOrRange = 0.0
    page_size: Annotated[int, Field(ge=1, le=1000)] = 20
    white_space: WhiteSpace = "kept"
    event_stream: bool = False
    enabled: bool = True
    limit: AnyLimit | None = None
    access_lifetime: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0
    consent: Literal["page", "approved", "denied"] = "page"
    registrations: Annotated[int, Field(ge=0)] = 10

    @model_validator(mode="after")
    def _ranges_grow(self) -> Self:
        for name, (shortest, longest) in {"lag": range_of(self.lag), "latency": range_of(self.latency)}.items():
            if shortest > longest:
                raise ValueError(f"{name} needs its shortest time first")
        return self

    def lag_of(self, message_id: str) -> float:
        """Return the seconds until this message can be found, always the same ones."""
        shortest, longest = range_of(self.lag)
        return shortest + (longest - shortest) * zlib.crc32(message_id.encode()) / 0xFFFF_FFFF


def range_of(seconds: float | tuple[float, float]) -> tuple[float, float]:
    """Return the shortest and the longest time."""
    return seconds if isinstance(seconds, tuple) else (seconds, seconds)


PARSER: TypeAdapter[Reading] = TypeAdapter(Reading)
"""Reads a description from JSON."""
