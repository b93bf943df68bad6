"""Secrets that look like real ones and are none."""

IDENTITY_SECRET = "ha_secret_example_identity_secret"
