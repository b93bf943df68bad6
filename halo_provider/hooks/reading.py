"""Reading from Halo with the sign-in of a connection: the tokens are in the ledger's database, under Airflow's key."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from halo_provider.client.access import StoredAccess
from halo_provider.client.oauth import check_installed
from halo_provider.client.reader import DEFAULT_MCP_URL, HaloReader
from halo_provider.compat import conf
from halo_provider.exceptions import HaloConfigurationError
from halo_provider.ledger.sign_ins import SignIns

if TYPE_CHECKING:
    from ssl import SSLContext

    from halo_provider.ledger import Ledger
    from halo_provider.ledger.sign_ins import Cipher

MCP_PATH = "/api/mcp"
_HALO = "haloagents.ai"


def reading_url(base_url: str, configured: str | None) -> str:
    """
    Return the address of Halo's MCP server.

    :param base_url: the SDK's, from the connection
    :param configured: the connection's extra ``mcp_url``, which decides where it is given
    :raises HaloConfigurationError: if it is no http or https address
    """
    if configured is None:
        parts = urlsplit(base_url)
        is_halo = parts.hostname is not None and parts.hostname.endswith(_HALO)
        return DEFAULT_MCP_URL if is_halo else f"{parts.scheme}://{parts.netloc}{MCP_PATH}"
    parts = urlsplit(configured)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise HaloConfigurationError(f"the connection's mcp_url needs a full address like {DEFAULT_MCP_URL}")
    return configured


def sign_ins_of(ledger: Ledger, halo_conn_id: str) -> SignIns:
    """
    Return the connection's sign-in, as it is kept in the ledger's database.

    :param ledger: an open ledger
    :param halo_conn_id: the connection
    :raises HaloConfigurationError: if Airflow has no Fernet key
    """
    return SignIns(ledger, conn_id=halo_conn_id, cipher=airflow_cipher())


def reader_of(ledger: Ledger, halo_conn_id: str, *, url: str, ssl_context: SSLContext | None = None) -> HaloReader:
    """
    Return a reader that uses the connection's sign-in; enter it to use it.

    :param ledger: an open ledger, which must stay open while the reader is used
    :param halo_conn_id: the connection
    :param url: see :func:`reading_url`
    :param ssl_context: whose certificates are trusted, where these are not the usual ones
    :raises HaloConfigurationError: if Airflow has no Fernet key, or Authlib is not installed
    """
    check_installed()
    access = StoredAccess(sign_ins_of(ledger, halo_conn_id), ssl_context=ssl_context)
    return HaloReader(access=access, url=url, ssl_context=ssl_context)


def airflow_cipher() -> Cipher:
    """
    Return what encrypts with ``[core] fernet_key``, as Airflow encrypts its connections; old keys still decrypt.

    :raises HaloConfigurationError: if there is no key, or it is none
    """
    from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415 -- not needed where a DAG is parsed

    keys = [key.strip() for key in (conf.get("core", "fernet_key", fallback="") or "").split(",") if key.strip()]
    if not keys:
        raise HaloConfigurationError(
            "reading needs [core] fernet_key, which encrypts the sign-in: set it, the same on every worker"
        )
    try:
        return MultiFernet([Fernet(key.encode()) for key in keys])
    except ValueError as error:
        raise HaloConfigurationError("[core] fernet_key is not a Fernet key: 32 bytes in URL-safe base64") from error
