"""An asynchronous client of a judge behind the chat completions of an OpenAI-compatible server.

Requests and their retries are those of the `openai` package. Ours are the verdict, the time after
which a pair is given up, the number of requests at once, and that no message holds the key.
"""

import asyncio
import collections
import re
from collections.abc import Mapping
from typing import Any

import httpx2
import openai
from absl import logging

from speciarl_jax.runtime import exit_codes
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import connection, judge_prompt

_SERVER = "config.verifier.http_judge.server"
STRUCTURES = ("json_schema", "choice", "none")


def structures(prompt: judge_prompt.JudgePrompt) -> dict[str, Mapping[str, Any]]:
    """How a server is asked to restrict a reply, the strictest first.

    It may not know a field (HTTP 400 or 422), then the next is tried, or ignore it: replies are
    read strictly in any case. A reply that is no JSON has no schema.
    """
    schema = {"name": "verdict", "strict": True, "schema": judge_prompt.REPLY_SCHEMA}
    # vLLM's field, and its name before that.
    choice = {"structured_outputs": {"choice": prompt.replies}, "guided_choice": prompt.replies}
    found = {
        "json_schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
        "choice": choice,
        "none": {},
    }
    return {name: found[name] for name in STRUCTURES if name != "json_schema" or not prompt.bare}


# A refusal that is about structured output holds a word of each line.
_FEATURE = re.compile(r"response_format|json_schema|structured|guided|grammar", re.I)
_UNKNOWN = re.compile(
    r"(un|not |isn't |is not |no )(support|known|recogni|avail|expect|permit|allow|implement)"
    r"|extra|invalid|must be|should be",
    re.I,
)
# Truths and predictions on which judges differ; their verdicts tell one judge from another where
# the server does not say what it serves.
PROBES = (
    ("great spotted woodpecker", "woodpecker"),
    ("great spotted woodpecker", "bird"),
    ("great spotted woodpecker", "dendrocopos major"),
    ("great spotted woodpecker", "middle spotted woodpecker"),
    ("boeing 767 300", "boeing 767"),
    ("boeing 767 300", "twin engine airliner"),
    ("cup cakes", "chocolate muffin"),
    ("cup cakes", "dessert"),
)
_READINGS = 10  # how often a pair is asked, at most, if decoding is not greedy
_MAX_TEXT = 1 << 19  # characters of a reply, thinking included
_SHOWN = 200  # characters of a server's complaint
_FIRST_WORDS = 60  # characters of a reply that is no verdict


Messages = list[dict[str, str]]


class NoVerdict(Exception):
    """The judge gave no verdict on a pair, and will not be asked again now; says why."""


class Unreachable(Exception):
    """No server answers at the address; the message says what is tried next."""


class JudgeClient:
    """Asks a judge about one pair at a time, any number of pairs at once.

    All methods but the constructor and `errors` belong to one event loop.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        prompt: judge_prompt.JudgePrompt,
        *,
        structured: str,
        url: str,
        api_key_env: str,
        concurrency: int,
        timeout: float,
        attempts: int,
        give_up_after: float,
        start_timeout: float,
    ):
        """Checks the options; sends nothing.

        Args:
          fields: of every request: `model` and decoding settings.
          prompt: what is asked.
          structured: a key of `STRUCTURES`, or "auto": the first that the server knows.
          url: of the server, up to and with "/v1".
          api_key_env: name of the environment variable that holds the key; "" for none.
          concurrency: requests at once.
          timeout: seconds of silence until an attempt counts as failed.
          attempts: at one request; the waits between them grow to 8 s. Also how often a pair is
            asked whose reply is no verdict: twice at most where decoding is greedy.
          give_up_after: seconds without any verdict after which all waiting pairs are given up.
          start_timeout: seconds for which `identify` waits for a server that refuses connections.

        Raises:
          ValueError: an option that cannot be; never shows the key.
        """
        known = structures(prompt)
        if structured != "auto" and structured not in known:
            raise ValueError(
                f"config.verifier.http_judge.decoding.structured is {structured!r}; choose auto or "
                f"one of {list(known)} with this prompt"
            )
        for name, value, low in (
            ("concurrency", concurrency, 1),
            ("attempts", attempts, 1),
            ("timeout", timeout, 1e-3),
            ("give_up_after", give_up_after, 1e-3),
            ("start_timeout", start_timeout, 0),
        ):
            if value < low:
                raise ValueError(f"{_SERVER}.{name} is {value}; it must be at least {low}")
        self._url, self._key = connection.checked(url), connection.read_key(api_key_env)
        self._key_env = api_key_env
        self._fields, self._prompt = dict(fields), prompt
        self._known_structures = known
        self._structures = list(known) if structured == "auto" else [structured]
        # What is decoded greedily is mostly the same again.
        self._readings = min(attempts, 2 if fields.get("temperature") == 0 else _READINGS)
        self._give_up_after, self._start_timeout = give_up_after, start_timeout
        self._slots = asyncio.Semaphore(concurrency)
        self._openai = connection.connect(
            self._url, self._key, self._note, timeout=timeout, attempts=attempts
        )
        self._waiting = 0  # pairs
        self._silent_since = 0.0  # by the clock of the loop
        self._errors: collections.Counter[str] = collections.Counter()

    async def ask(self, truth: str, prediction: str) -> Category:
        """Returns the judge's verdict on a pair.

        Raises:
          NoVerdict: there is none, after all that may be tried.
        """
        clock = asyncio.get_running_loop().time
        if not self._waiting:
            self._silent_since = clock()
        self._waiting += 1
        asked = asyncio.ensure_future(self._judge(self._prompt.messages(truth, prediction)))
        try:
            while not asked.done():
                left = self._silent_since + self._give_up_after - clock()
                if left <= 0:
                    self._note(f"no verdict for {self._give_up_after:g} s")
                    raise NoVerdict(f"no verdict for {self._give_up_after:g} s")
                await asyncio.wait([asked], timeout=left)
            self._silent_since = clock() if asked.exception() is None else self._silent_since
            return asked.result()
        finally:
            self._waiting -= 1
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def identify(self, known: str | None = None) -> str:
        """Makes sure that the judge can be asked, and returns what tells it from other judges.

        That is `known`, the checkpoint of which the server says that it serves it, or the verdicts
        on `PROBES`. Waits for a server that is starting: it answers 503, or refuses connections.

        Raises:
          ValueError: the configuration does not fit the server; says how to mend it.
          Unreachable: connections are refused, and `start_timeout` does not let it wait.
          exit_codes.RestartNeeded: the server was not ready in time.
        """
        await self._first_reply()
        if known:
            return known
        model = self._fields["model"]
        root = (await self._served()).get(model)
        # Some servers repeat the name; a checkpoint's has a folder or an owner.
        if root and (root != model or "/" in root):
            return root
        asked = [self.ask(*pair) for pair in PROBES]
        verdicts = await asyncio.gather(*asked, return_exceptions=True)
        letters = " ".join(str(int(v)) if isinstance(v, Category) else "?" for v in verdicts)
        logging.warning(
            "%s does not say which checkpoint it serves as %r; cached verdicts are kept apart by "
            "its verdicts on %d pairs (%s), which similar judges may share. Name the served model "
            "after its checkpoint, or set config.verifier.http_judge.identity",
            *(self._url, model, len(PROBES), letters),
        )
        return f"verdicts {letters}"

    def errors(self) -> str:
        """Returns what went wrong since the last call, the most frequent first; "" for nothing."""
        counted, self._errors = self._errors, collections.Counter()
        found = [f"{count} x {why}" for why, count in counted.most_common(4)]
        return f"{self._url}: " + "; ".join(found) if found else ""

    async def close(self) -> None:
        """Closes the connections."""
        await self._openai.close()

    async def _judge(self, messages: Messages) -> Category:
        """The verdict that a chat asks for."""
        why = ""
        async with self._slots:
            for _ in range(self._readings):
                try:
                    category, why = _read(await self._complete(self._openai, messages))
                except openai.APIError as error:
                    why = self._explain(error)
                    if not connection.may_pass(getattr(error, "status_code", 500)):
                        self._note(why)
                    raise NoVerdict(why) from None
                # From a body that is no JSON.
                except (ValueError, RecursionError):
                    category, why = None, "a reply that is no completion"
                if category is not None:
                    return category
                why = self._redacted(why)
                self._note(why)
        raise NoVerdict(why)

    async def _complete(self, client: openai.AsyncOpenAI, messages: Messages) -> Any:
        """A completion, in the strictest structure that the server knows."""
        refused = None
        for name in list(self._structures):
            try:
                reply = await client.chat.completions.create(
                    model=self._fields["model"],
                    messages=messages,
                    extra_body={**self._fields, **self._known_structures[name]},
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not all(words.search(error.response.text) for words in (_FEATURE, _UNKNOWN)):
                    raise
                refused = refused or error
                continue
            # Only now is it sure that the structure was what the server refused.
            if refused and name in self._structures[1:]:
                self._structures = self._structures[self._structures.index(name) :]
                why = self._explain(refused)
                logging.warning("%s: structured output is %r from now on: %s", self._url, name, why)
            return reply
        raise refused

    async def _first_reply(self) -> None:
        """Waits for one reply, whatever it says; see `identify`."""
        clock = asyncio.get_running_loop().time
        client, begun = self._openai.with_options(max_retries=0), clock()
        while True:
            try:
                await self._complete(client, self._prompt.messages(*PROBES[0]))
                return
            except (ValueError, RecursionError):
                return
            except openai.APIError as error:
                why, code = self._explain(error), getattr(error, "status_code", None)
                refused = isinstance(error.__cause__, httpx2.ConnectError)
                if code and not connection.may_pass(code):
                    names = sorted(await self._served())
                    why += f"; it serves {names}" if names else ""
                    raise ValueError(f"the judge cannot be asked: {self._url}: {why}") from None
                waits = self._start_timeout if refused else self._give_up_after
                if clock() - begun >= waits:
                    break
            await asyncio.sleep(min(5.0, waits / 10))
        if refused and not waits:
            raise Unreachable(
                f"no judge answers at {self._url}: {why}; correct {_SERVER}.url or start the "
                f"server, or set {_SERVER}.start_timeout to the seconds that it may take to start"
            )
        raise exit_codes.RestartNeeded(
            f"the judge at {self._url} was not ready after {waits:g} s: {why}"
        )

    async def _served(self) -> dict[str, str]:
        """The names of the served models -> their checkpoints, as far as the server says so."""
        try:
            models = (await self._openai.with_options(max_retries=0).models.list()).data
            return {model.id: str(getattr(model, "root", None) or "") for model in models}
        # Many servers have no such list, or one of another form.
        except (openai.APIError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _explain(self, error: openai.APIError) -> str:
        """What a failed request means, in words that hold no key."""
        if isinstance(error, openai.APITimeoutError):
            return "no reply in time"
        if not isinstance(error, openai.APIStatusError):
            return f"the connection failed ({type(error.__cause__).__name__})"
        status, why = error.status_code, connection.status(error.response)
        said = self._redacted(" ".join(error.response.text[: 4 * _SHOWN].split()))[:_SHOWN]
        if status in (401, 403):
            # Some servers repeat parts of a key that they do not accept.
            return f"{why}: it does not accept the key (environment variable {self._key_env!r})"
        if status == 404:
            why += f": no such address or model {self._fields['model']!r}"
        return f"{why} ({said})" if said else why

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _note(self, why: str) -> None:
        if why in self._errors or len(self._errors) < 100:
            self._errors[why] += 1


def _read(reply: Any) -> tuple[Category | None, str]:
    """The verdict in a completion, and what is wrong where there is none."""
    try:
        (choice,) = reply.choices
        text, reason = choice.message.content or "", choice.finish_reason
        category = judge_prompt.read_reply(text) if len(text) <= _MAX_TEXT else None
    except (AttributeError, TypeError, ValueError):
        return None, "a reply that is no completion with one choice"
    words = " ".join(text[: 4 * _FIRST_WORDS].split())[:_FIRST_WORDS]
    return category, f"a reply that is no verdict (finish_reason {reason!r}): {words!r}"
