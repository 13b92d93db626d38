"""Connections to an OpenAI-compatible server by the `openai` package; no message holds the key."""

import os
from collections.abc import Callable
from typing import Any

import httpx2
import openai

_SERVER = "config.verifier.http_judge.server"
_NO_KEY = "none"  # the package wants some key; this one is not sent


class _Http(httpx2.AsyncClient):
    """Notes every attempt that failed in a way that may pass, also those that are repeated."""

    def __init__(self, note: Callable[[str], None], **options: Any):
        super().__init__(**options)
        self._note = note

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if request.headers.get("Authorization") == f"Bearer {_NO_KEY}":
            del request.headers["Authorization"]
        try:
            response = await super().send(request, **options)
        except httpx2.HTTPError as error:
            self._note(f"the connection failed ({type(error).__name__})")
            raise
        if may_pass(response.status_code):
            self._note(status(response))
        return response


def connect(
    url: str, key: str, note: Callable[[str], None], *, timeout: float, attempts: int
) -> openai.AsyncOpenAI:
    """Makes a client; sends nothing.

    Args:
      url: of the server.
      key: "" for none.
      note: is told of every attempt that failed and is made again.
      timeout: seconds of silence until an attempt counts as failed.
      attempts: at one request.
    """
    # No redirects: the key goes to the server that was named. Certificates are slow to load.
    http = _Http(note, timeout=timeout, follow_redirects=False, verify=url.startswith("https"))
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=key or _NO_KEY,
        organization="",
        project="",
        timeout=timeout,
        max_retries=attempts - 1,
        http_client=http,
    )


def may_pass(status: int) -> bool:
    """Tells whether the package asks again after this status."""
    return status in (408, 409, 429) or status >= 500


def status(response: httpx2.Response) -> str:
    """Returns the status of a reply, and when the server wants to be asked again."""
    after = response.headers.get("retry-after", "")
    return f"HTTP {response.status_code}" + (f", and to come back after {after}" if after else "")


def checked(url: str) -> str:
    """Returns the address of a server, without a slash at its end.

    Raises:
      ValueError: it is no HTTP URL, or holds a user's name, a password or a query.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(
            f"{_SERVER}.url is {url!r}; give the address of an OpenAI-compatible server, such as "
            "http://127.0.0.1:8000/v1"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError(
            f"{_SERVER}.url must hold no user, password or query; put the key into an environment "
            "variable and its name into api_key_env"
        )
    return url.rstrip("/")


def read_key(name: str) -> str:
    """Returns the key in an environment variable.

    Raises:
      ValueError: the variable is not set or holds what no header may hold; does not show it.
    """
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(
            f"api_key_env is {name!r}, and that environment variable is not set or empty; set it, "
            'or api_key_env to "" for a server without a key'
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {name!r} holds characters that no key has (a line break?)"
        )
    return key
