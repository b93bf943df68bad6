"""What a task returned, and what Halo accepted of its rows."""

from typing import Any

from halo_provider.simulator import Simulator

COUNTS = ("delivered", "already_delivered", "duplicate", "rejected", "in_doubt", "failed", "not_attempted")


def counts(summary: dict[str, Any]) -> dict[str, int]:
    """The summary's counts that are not zero, once they are known to balance."""
    assert summary["read"] == sum(summary[name] for name in COUNTS)
    return {name: summary[name] for name in COUNTS if summary[name]}


def chat_ids(halo: Simulator) -> list[str]:
    """The ids in the messages that Halo accepted, sorted."""
    return sorted(chat.message.removeprefix("Text ") for chat in halo.chats)
