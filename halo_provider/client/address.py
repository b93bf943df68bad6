"""Where requests go: the SDK's address from the connection's base URL, and the proxy that the environment names."""

from contextlib import suppress
from urllib.request import getproxies, proxy_bypass

import httpx

from halo_provider.exceptions import HaloConfigurationError

DEFAULT_BASE_URL = "https://api.haloagents.ai"
SDK_PATH = "/api/sdk"


def sdk_url(base_url: str) -> str:
    """The SDK's address: `base_url`, with ``/api/sdk`` added when it has no path of its own.

    Raises HaloConfigurationError for anything but an http or https address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise HaloConfigurationError(f"the connection's host is not an address: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise HaloConfigurationError(f"the connection's host needs a full address like {DEFAULT_BASE_URL}")
    if url.userinfo or url.query or url.fragment:
        raise HaloConfigurationError("the connection's host must be an address without credentials, query and fragment")
    path = url.path.rstrip("/")
    return str(url.copy_with(path=path or SDK_PATH))


def environment_proxy(url: str) -> httpx.Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for this address, if any.

    Raises HaloConfigurationError if the variable's value is not an http or https address. The error does not quote the
    value, which may hold a password.
    """
    address = httpx.URL(url)
    named = getproxies().get(address.scheme)
    if not named or proxy_bypass(address.netloc.decode()):
        return None
    with suppress(httpx.InvalidURL, ValueError):
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
        if proxy.url.scheme in {"http", "https"}:
            return proxy
    raise HaloConfigurationError(
        f"the environment's {address.scheme}_proxy is not an http or https address: "
        "correct it, or add Halo's host to no_proxy"
    )
