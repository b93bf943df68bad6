"""Calls of Halo's SDK API, one of which is one HTTP attempt; and `HaloReader`, which asks what Halo has."""

from halo_provider.client.client import HaloClient
from halo_provider.client.reader import HaloReader

__all__ = ["HaloClient", "HaloReader"]
