"""The configuration of a run as services may see it: without addresses and secrets."""

import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

# Keys of verifiers that hold addresses, or fields of requests, and with them maybe passwords.
_LEFT_OUT = ("server", "cache", "extra_body")
_SECRET = re.compile(r"(^|_)(api_?key|token|password|passwd|secret|credentials?|auth)($|_)", re.I)
# User and password, and what stands behind the path.
_USER, _QUERY = re.compile(r"(?<=://)[^/@\s]+@"), re.compile(r"(://[^?#\s]*)[?#]\S*")
HIDDEN = "[left out]"


def public(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the configuration, JSON-able, with "[left out]" for what may be a secret.

    That is: the address, the cache and the extra fields of a judge; text under a key that is called
    as secrets are; user, password and query of any URL.
    """
    return shown(json.loads(config.to_json()))


def without_secrets(text: str) -> str:
    """Returns text without user, password and query of the URLs in it."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


def shown(value: Any) -> Any:
    """Does for JSON-able values what `public` does."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _hides(key, inner) else shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def _hides(key: str, value: Any) -> bool:
    return key in _LEFT_OUT or (isinstance(value, str) and bool(_SECRET.search(key)))
