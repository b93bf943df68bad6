"""A connection's own certificates: whom the client trusts, and what it shows of itself."""

import asyncio
import ssl
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from cryptography.hazmat.primitives import serialization

from halo_provider.client.access import StoredAccess
from halo_provider.client.reader import HaloReader
from halo_provider.client.tls import tls_context
from halo_provider.exceptions import HaloConfigurationError, HaloConnectionError, HaloReadError
from halo_provider.models import SignIn, Turn
from tests.core.servers import OK, answering, chat_with, listening


@pytest.fixture
def parts(certificate: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The certificate and its key in two files."""
    text = certificate.read_text()
    start = text.index("-----BEGIN CERTIFICATE")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(text[start:])
    key.write_text(text[:start])
    return cert, key


@pytest.fixture
def asking(certificate: Path) -> ssl.SSLContext:
    """A server's side of TLS that asks for the client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_authority_of_the_connection_is_trusted(tls: ssl.SSLContext, certificate: Path) -> None:
    """Without any variable of the environment."""
    trusting = tls_context(ca_file=str(certificate))
    assert asyncio.run(chat_with(answering(OK), tls=tls, ssl_context=trusting)).session_id == "s-1"


def test_authority_that_is_not_named_is_not_trusted(tls: ssl.SSLContext) -> None:
    """Nothing is sent to a server that nobody known has signed for."""
    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(chat_with(answering(OK), tls=tls, ssl_context=tls_context()))
    assert not caught.value.sent


def test_reading_and_renewing_trust_the_connections_authority_too(tls: ssl.SSLContext, certificate: Path) -> None:
    """The server of the tools, and the one of the tokens, may stand behind the same proxy as the API."""
    trusting = tls_context(ca_file=str(certificate))

    async def ask() -> tuple[Any, Any]:
        async with listening(answering(OK), tls=tls) as port:
            url = f"https://127.0.0.1:{port}/"
            sign_in = SignIn(
                access_token="ha_access_example",
                refresh_token="ha_refresh_example",
                token_endpoint=url,
                client_id="client",
                resource=url,
            )
            store = Mock(spec=["turn", "not_renewed", "renewed"])
            store.turn.return_value = Turn(sign_in=sign_in, seconds_left=0.0, waits=60.0, renews=True)
            with pytest.raises(HaloReadError) as renewing:
                await StoredAccess(store, ssl_context=trusting).token()
            access = Mock(token=AsyncMock(return_value="ha_access_example"), close=AsyncMock())
            with pytest.raises(HaloReadError) as reading:
                async with HaloReader(access=access, url=url, ssl_context=trusting) as reader:
                    await reader.tools()
            return renewing.value, reading.value

    for error in asyncio.run(ask()):
        assert error.sent


@pytest.mark.parametrize("in_two_files", [False, True])
def test_client_certificate_is_shown(
    *, asking: ssl.SSLContext, certificate: Path, parts: tuple[Path, Path], in_two_files: bool
) -> None:
    """From one file, or from two."""
    named = [str(part) for part in parts] if in_two_files else [str(certificate)]
    context = tls_context(ca_file=str(certificate), client_cert=named)
    assert asyncio.run(chat_with(answering(OK), tls=asking, ssl_context=context)).session_id == "s-1"


def test_server_that_asks_for_a_certificate_refuses_a_client_without(asking: ssl.SSLContext, certificate: Path) -> None:
    """The certificate above was really asked for."""
    with pytest.raises(HaloConnectionError):
        asyncio.run(chat_with(answering(OK), tls=asking, ssl_context=tls_context(ca_file=str(certificate))))


def test_key_that_is_encrypted_is_refused(certificate: Path, tmp_path: Path) -> None:
    """Nobody is at the worker's terminal to be asked."""
    text = certificate.read_bytes()
    key = serialization.load_pem_private_key(text, password=None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"example"),
    )
    path = tmp_path / "encrypted.pem"
    path.write_bytes(encrypted + text[text.index(b"-----BEGIN CERTIFICATE") :])
    with pytest.raises(HaloConfigurationError, match="the key of client_cert is encrypted"):
        tls_context(client_cert=[str(path)])


@pytest.mark.parametrize("content", [b"", b"no certificate"])
@pytest.mark.parametrize("parameter", ["ca_file", "client_cert"])
def test_file_without_certificate_is_refused(tmp_path: Path, content: bytes, parameter: str) -> None:
    """With its path and what has to be in it."""
    path = tmp_path / "empty.pem"
    path.write_bytes(content)
    with pytest.raises(HaloConfigurationError, match=f"{parameter} '.*empty.pem' cannot be used: .*PEM format"):
        tls_context(**{parameter: str(path) if parameter == "ca_file" else [str(path)]})
