"""Calls of Halo's SDK API: one call is one HTTP attempt, and every way it can fail is one typed error."""

from halo_provider.client.client import HaloClient

__all__ = ["HaloClient"]
