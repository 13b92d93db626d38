"""An asynchronous client of a judge behind the chat completions of an OpenAI-compatible server."""

import asyncio
import collections
import datetime
import email.utils
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import tenacity

from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt

_REPLIES = [judge_prompt.reply(label) for label in judge_prompt.LABELS]
_SERVER = "config.verifier.http_judge.server"
# How a server is asked to restrict a reply, the strictest first. It may refuse a field (HTTP 400 or
# 422), then the next is tried, or ignore it: replies are read strictly in any case.
STRUCTURES: dict[str, Mapping[str, Any]] = {
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "verdict",
                "strict": True,
                "schema": judge_prompt.REPLY_SCHEMA,
            },
        }
    },
    # vLLM's field, and its name before that.
    "choice": {"structured_outputs": {"choice": _REPLIES}, "guided_choice": _REPLIES},
    "none": {},
}
_REFUSED = (400, 422)
_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_MAX_BODY = 1 << 20  # bytes of a reply; a verdict takes a few hundred
_SHOWN = 200  # characters of a server's complaint


class NoVerdict(Exception):
    """The judge gave no verdict on a pair, and will not be asked again now; says why."""


class _Again(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
      retry_after: seconds that the server asked to wait, 0 if it did not.
    """

    def __init__(self, why: str, retry_after: float = 0.0):
        super().__init__(why)
        self.retry_after = retry_after


class _Refused(Exception):
    """The server did not take the request as it was."""


class JudgeClient:
    """Asks a judge about one pair at a time, any number of pairs at once.

    All methods but the constructor and `errors` belong to one event loop.
    """

    def __init__(
        self,
        ask_for: Mapping[str, Any],
        prompt: judge_prompt.JudgePrompt,
        *,
        structured: str,
        url: str,
        api_key_env: str,
        concurrency: int,
        timeout: float,
        attempts: int,
        backoff: float,
        max_backoff: float,
        give_up_after: float,
    ):
        """Checks the options; sends nothing.

        Args:
          ask_for: fields of every request: model and decoding settings.
          prompt: what is asked.
          structured: a key of `STRUCTURES`, or "auto": the first that the server takes.
          url: of the server, up to and with "/v1".
          api_key_env: name of the environment variable that holds the key; "" for none.
          concurrency: requests at once.
          timeout: seconds until an attempt counts as failed.
          attempts: at one pair.
          backoff: seconds; the wait before attempt n + 1 is drawn from [0, backoff * 2**n].
          max_backoff: seconds, limit of that.
          give_up_after: seconds without any verdict after which all waiting pairs are given up,
            and the longest Retry-After that is waited for.

        Raises:
          ValueError: an option that cannot be; never shows the key.
        """
        self._url = _endpoint(url)
        self._key = _read_key(api_key_env)
        self._key_env = api_key_env
        if structured != "auto" and structured not in STRUCTURES:
            raise ValueError(
                f"config.verifier.http_judge.decoding.structured is {structured!r}; choose auto or "
                f"one of {list(STRUCTURES)}"
            )
        for name, value, low in (
            ("concurrency", concurrency, 1),
            ("attempts", attempts, 1),
            ("timeout", timeout, 1e-3),
            ("give_up_after", give_up_after, 1e-3),
            ("backoff", backoff, 0),
            ("max_backoff", max_backoff, 0),
        ):
            if value < low:
                raise ValueError(f"{_SERVER}.{name} is {value}; it must be at least {low}")
        self._ask_for, self._prompt = dict(ask_for), prompt
        self._structures = list(STRUCTURES) if structured == "auto" else [structured]
        self._timeout, self._attempts, self._give_up_after = timeout, attempts, give_up_after
        self._wait = tenacity.wait_random_exponential(multiplier=backoff, max=max_backoff)
        self._slots = asyncio.Semaphore(concurrency)
        self._http = _open_http(self._url, self._key, concurrency)
        self._waiting = 0  # pairs
        self._silent_since = 0.0  # by the clock of the loop
        self._closed_until = 0.0
        self._troubles: collections.Counter[str] = collections.Counter()

    async def ask(self, truth: str, prediction: str) -> Category:
        """The judge's verdict on a pair.

        Raises:
          NoVerdict: there is none, after all that may be tried.
        """
        clock = asyncio.get_running_loop().time
        if not self._waiting:
            self._silent_since = clock()
        self._waiting += 1
        try:
            message = self._prompt.fill(truth, prediction)
            async for attempt in self._retrying(clock):
                with attempt:
                    category = await self._attempt(message, clock)
            self._silent_since = clock()
            return category
        except (_Again, _Refused) as error:
            raise NoVerdict(str(error)) from None
        finally:
            self._waiting -= 1

    def errors(self) -> str:
        """What went wrong since the last call, the most frequent first; "" for nothing."""
        counted, self._troubles = self._troubles, collections.Counter()
        found = [f"{count} x {why}" for why, count in counted.most_common(4)]
        return f"{self._url}: " + "; ".join(found) if found else ""

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def _retrying(self, clock: Callable[[], float]) -> tenacity.AsyncRetrying:
        def stop(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= self._attempts or self._given_up(clock)

        def wait(state: tenacity.RetryCallState) -> float:
            # A server that said when it opens is not asked before; jitter spreads those who wait.
            asked_for = state.outcome.exception().retry_after
            return asked_for + self._wait(state)

        return tenacity.AsyncRetrying(
            stop=stop, wait=wait, retry=tenacity.retry_if_exception_type(_Again), reraise=True
        )

    def _given_up(self, clock: Callable[[], float]) -> bool:
        return clock() - self._silent_since >= self._give_up_after

    async def _attempt(self, message: str, clock: Callable[[], float]) -> Category:
        """One attempt, in the strictest structure that the server takes."""
        async with self._slots:
            while (left := self._closed_until - clock()) > 0:
                await asyncio.sleep(left)
            if self._given_up(clock):
                raise NoVerdict(f"no verdict for {self._give_up_after:g} s")
            try:
                for name in list(self._structures):
                    try:
                        content = await self._post(message, STRUCTURES[name], clock)
                    except _Refused:
                        if name == "none" or len(self._structures) == 1:
                            raise
                        continue
                    # It took this one; those before it are not tried again.
                    if name in self._structures:
                        del self._structures[: self._structures.index(name)]
                    return _read_completion(content)
                raise _Refused("the server takes no kind of structured output")
            except (_Again, _Refused, NoVerdict) as error:
                self._note(str(error))
                raise

    async def _post(
        self, message: str, structure: Mapping[str, Any], clock: Callable[[], float]
    ) -> bytes:
        """The body of a reply with status 200."""
        body = {"messages": [{"role": "user", "content": message}], **self._ask_for, **structure}
        try:
            async with asyncio.timeout(self._timeout):
                async with self._http.stream("POST", self._url, json=body) as response:
                    content = await _read(response)
        except TimeoutError:
            raise _Again(f"no reply within {self._timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise _Again(f"the connection failed ({type(error).__name__})") from None
        if response.status_code == 200:
            return content
        raise self._complaint(response, content, clock)

    def _complaint(self, response: httpx2.Response, content: bytes, clock) -> Exception:
        """What a status other than 200 means."""
        status = response.status_code
        why = f"HTTP {status}"
        if status in _AGAIN or status >= 500:
            wait = _retry_after(response.headers.get("retry-after", ""))
            if wait > self._give_up_after:
                return NoVerdict(
                    f"{why}, and to come back after {wait:.0f} s (give_up_after is less)"
                )
            self._closed_until = max(self._closed_until, clock() + wait)
            return _Again(why, wait)
        said = " ".join(content[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]
        if self._key:
            # Some servers repeat (parts of) a key that they do not accept.
            said = "" if status in (401, 403) else said.replace(self._key, "***")
        if status in (401, 403):
            why += f": it does not accept the key (environment variable {self._key_env!r})"
        elif status == 404:
            why += f": no such address or model {self._ask_for.get('model')!r}"
        why += f" ({said})" if said else ""
        return _Refused(why) if status in _REFUSED else NoVerdict(why)

    def _note(self, why: str) -> None:
        if why in self._troubles or len(self._troubles) < 100:
            self._troubles[why] += 1


def _open_http(url: str, key: str, concurrency: int) -> httpx2.AsyncClient:
    # No redirects: the key goes to the server that was named. No compression: bodies stay bounded.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        headers=headers,
        verify=url.startswith("https"),  # certificates are slow to load
        timeout=None,  # `_post` limits an attempt as a whole
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
    )


async def _read(response: httpx2.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MAX_BODY:
            raise _Again(f"a reply of more than {_MAX_BODY} bytes")
    return b"".join(parts)


def _read_completion(content: bytes) -> Category:
    """The verdict in the body of a completion."""
    try:
        (choice,) = json.loads(content)["choices"]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Again("a reply that is no completion with one choice") from None
    category = judge_prompt.read_reply(text) if isinstance(text, str) else None
    if category is None:
        raise _Again("a completion that is none of the six verdicts")
    return category


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date; 0 for none or nonsense."""
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def _endpoint(url: str) -> str:
    """The address of the chat completions.

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
    return url.rstrip("/") + "/chat/completions"


def _read_key(name: str) -> str:
    """The key in an environment variable.

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
