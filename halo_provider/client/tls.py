"""Whose certificates are trusted, and which one this side shows."""

import ssl
from collections.abc import Sequence

import httpx

from halo_provider.exceptions import HaloConfigurationError


def tls_context(*, ca_file: str | None = None, client_cert: Sequence[str] = ()) -> ssl.SSLContext:
    """The context of all TLS connections.

    `ca_file` (PEM) holds the only authorities that are trusted, instead of those of certifi or of SSL_CERT_FILE.
    `client_cert` names the PEM file of this side's certificate with its key, or the two files: at most two. Raises
    HaloConfigurationError where a file cannot be used; a key that is encrypted cannot.
    """
    if ca_file is None:
        context = httpx.create_ssl_context()
    else:
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # an ssl.SSLError is one
            raise HaloConfigurationError(
                f"ca_file {ca_file!r} cannot be used: {_reason(error)}; it must hold certificates in PEM format"
            ) from None
    if client_cert:
        try:
            context.load_cert_chain(client_cert[0], client_cert[-1], password=_no_password)
        except OSError as error:
            named = ", ".join(map(repr, client_cert))
            raise HaloConfigurationError(
                f"client_cert {named} cannot be used: {_reason(error)}; it must hold a certificate and its key in PEM "
                "format"
            ) from None
    return context


def _no_password() -> str:
    """Keep OpenSSL from asking the terminal for one."""
    raise HaloConfigurationError("the key of client_cert is encrypted; give one that is not, readable for Airflow only")


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)
