"""The judge behind HTTP: a language model on any OpenAI-compatible server.

Only what could be one label reaches the judge (`screen`), in the form of `parsing.normalize`. Equal
pairs are asked once, whichever groups they come from, and verdicts outlive the run
(`verdict_cache`). What the judge does not answer is not valid; no failure becomes a verdict.
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging as logging_lib
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from speciarl_jax.verifiers import label_mentions, parsing, prefilter
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt, verdict_cache
from speciarl_jax.verifiers.judge.http_client import JudgeClient, NoVerdict, Unreachable
from speciarl_jax.verifiers.label_tree import label_names

# The normalised names of a truth and a prediction.
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What came of a pair: `seconds` is NaN where nothing was asked."""

    category: Category | None
    cached: bool = False
    seconds: float = float("nan")


class HttpJudge(HostVerifier):
    """Judges responses by asking a server. Its work is done by one thread with an event loop."""

    def __init__(
        self,
        names: Sequence[str],
        client: JudgeClient,
        cache: verdict_cache.VerdictCache,
        judge: verdict_cache.Judge,
        *,
        further: Mapping[str, int] | None = None,
        max_words: int,
        max_answer_bytes: int,
        tags: str,
    ):
        """Starts the thread; sends nothing yet.

        Args:
          names: of the labels, by index.
          client: of the server.
          cache: of verdicts.
          judge: what decides about a verdict, for the cache. Without `identity` in its settings,
            the client is asked for it before the first pair.
          further: other names of labels, see `label_mentions.index`.
          max_words: a longer answer is WRONG.
          max_answer_bytes: a longer answer is WRONG.
          tags: as for `parsing.extract`.

        Raises:
          ValueError: a label is longer than an answer may be.
        """
        prefilter.check_limits(names, max_words=max_words, max_answer_bytes=max_answer_bytes)
        self._names = list(names)
        self._client, self._cache, self._judge = client, cache, judge
        self._screen = functools.partial(
            prefilter.screen,
            labels=label_mentions.index(names, further),
            max_words=max_words,
            max_answer_bytes=max_answer_bytes,
        )
        self._tags = tags
        # Pairs that somebody waits for; only the loop's thread touches it.
        self._open: dict[Pair, asyncio.Future[_Outcome]] = {}
        self._tasks: set[asyncio.Task] = set()
        self._cache_thread = concurrent.futures.ThreadPoolExecutor(1, "verdict_cache")
        self._cache_fails = False
        self._known: asyncio.Task[verdict_cache.Judge] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`."""
        rows = [
            [self._look(text, self._names[label]) for text in group]
            for group, label in zip(responses, label_index, strict=True)
        ]
        return asyncio.run_coroutine_threadsafe(self._fill(rows), self._loop)

    def judge_pairs(self, pairs: Collection[Pair]) -> dict[Pair, Category | None]:
        """Returns the verdict on each normalised pair, None where there is none; waits for it."""
        found = asyncio.run_coroutine_threadsafe(self._judge_pairs(set(pairs)), self._loop)
        return {pair: outcome.category for pair, outcome in found.result().items()}

    def check(self) -> None:
        """See `HostVerifier`."""
        asyncio.run_coroutine_threadsafe(self._identified(), self._loop).result()

    def errors(self) -> str:
        """See `HostVerifier`."""
        return self._client.errors()

    def close(self) -> None:
        """See `HostVerifier`."""

        if not self._thread.is_alive():
            return

        async def finish():
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.close()
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._cache_thread.shutdown()
        self._cache.close()

    def _look(self, response: str, truth: str) -> Category | Pair:
        """The stated verdict on a response, or the pair that has to be judged."""
        content = parsing.extract(response, tags=self._tags)
        stated = self._screen(content, truth)
        if stated is not None:
            return stated
        return parsing.normalize(truth), parsing.normalize(content)

    async def _fill(self, rows: Sequence[Sequence[Category | Pair]]) -> Verdicts:
        outcomes = await self._judge_pairs(
            {found for row in rows for found in row if isinstance(found, tuple)}
        )
        filled, seen = [], set()
        for row in rows:
            for found in row:
                outcome = _Outcome(found) if isinstance(found, Category) else outcomes[found]
                if found in seen:
                    outcome = dataclasses.replace(outcome, seconds=float("nan"))
                elif isinstance(found, tuple):
                    seen.add(found)
                filled.append(outcome)
        shape = (len(rows), len(rows[0]) if rows else 0)
        category = [Category.UNPARSED if o.category is None else o.category for o in filled]
        return Verdicts(
            category_BN=np.array(category, np.int32).reshape(shape),
            valid_BN=np.array([o.category is not None for o in filled], bool).reshape(shape),
            cached_BN=np.array([o.cached for o in filled], bool).reshape(shape),
            seconds_BN=np.array([o.seconds for o in filled], np.float32).reshape(shape),
        )

    async def _judge_pairs(self, pairs: Collection[Pair]) -> dict[Pair, _Outcome]:
        """Outcomes of different pairs; those that are being judged already are not asked again."""
        if not pairs:
            return {}
        judge = await self._identified()
        theirs = {pair: self._open[pair] for pair in pairs if pair in self._open}
        keys = {pair: judge.key(*pair) for pair in pairs if pair not in theirs}
        # A pair is announced before the cache is read and leaves after it was written, so that it
        # cannot slip through between the two.
        mine = {pair: self._loop.create_future() for pair in keys}
        self._open |= mine
        known = await self._in_cache(self._cache.get, list(keys.values())) or {}
        for pair, key in keys.items():
            if key in known:
                self._settle(pair, _Outcome(known[key], cached=True))
            else:
                task = self._loop.create_task(self._ask(judge, pair))
                self._tasks.add(task)  # or it might be collected
                task.add_done_callback(self._tasks.discard)
        found = {pair: await future for pair, future in mine.items()}
        for pair, future in theirs.items():
            found[pair] = dataclasses.replace(await future, seconds=float("nan"))
        return found

    async def _identified(self) -> verdict_cache.Judge:
        """The judge with its identity, which is found out once."""
        if self._known is None:
            self._known = self._loop.create_task(self._identify())
        return await asyncio.shield(self._known)

    async def _identify(self) -> verdict_cache.Judge:
        settings = dict(self._judge.settings)
        identity = settings.pop("identity", None)
        judge = dataclasses.replace(self._judge, settings=settings)
        try:
            found = await self._client.identify(known=identity)
        except Unreachable as error:
            last = functools.partial(verdict_cache.last_identity, self._cache, judge)
            found = identity or await self._in_cache(last)
            if not found:
                raise ValueError(str(error)) from None
            # It was there before: this is an outage, and not a wrong address.
            logging.warning("%s; going on with the cached verdicts of %r", error, found)
        return dataclasses.replace(judge, settings=settings | {"identity": found})

    async def _ask(self, judge: verdict_cache.Judge, pair: Pair) -> None:
        """Has a pair judged, keeps the verdict, and tells all who wait."""
        outcome = _Outcome(None)
        try:
            begun = time.monotonic()
            category = await self._client.ask(*pair)
            seconds = time.monotonic() - begun
            row = judge.row(*pair, category)
            kept = await self._in_cache(self._cache.put, row)
            outcome = _Outcome(category if kept is None else kept, seconds=seconds)
        except NoVerdict as error:
            logging.log_every_n_seconds(logging.WARNING, "a pair has no verdict: %s", 60, error)
        except Exception:  # Whoever waits must hear of it, and a fault is no verdict.
            logging.exception("a pair has no verdict because of a fault in this program")
        finally:
            self._settle(pair, outcome)

    def _settle(self, pair: Pair, outcome: _Outcome) -> None:
        self._open.pop(pair).set_result(outcome)

    async def _in_cache(self, what: Any, *args: Any) -> Any:
        """A call of the cache in its thread; None if the cache fails, which stops no run."""
        try:
            found = await self._loop.run_in_executor(self._cache_thread, what, *args)
            self._cache_fails = False
            return found
        except Exception as error:  # whatever it is, a judge can do without a cache
            if not self._cache_fails:
                logging.warning("the verdict cache fails, going on without it: %s", error)
            self._cache_fails = True
            return None


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    path: str,
    **options: Any,
) -> tuple[label_names.LabelNames, HttpJudge]:
    """Builds what `config.verifier.name = "http_judge"` stands for.

    Args:
      token_bytes: not needed; the judge is sent text.
      dataset_path: label tree that the data set brings, or None.
      path: names of the labels (`label_names.read`); "" for the data set's own tree.
      **options: as for `connect`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier.

    Raises:
      ValueError: an option that does not fit.
    """
    del token_bytes
    if not (path or dataset_path):
        raise ValueError(
            "this data set brings no label tree; set config.verifier.http_judge.path to a file of "
            "label names (verifiers/label_tree/label_names.py)"
        )
    labels = label_names.read(path or dataset_path)
    return labels, connect(labels.names, labels.further, **options)


def connect(
    names: Sequence[str],
    further: Mapping[str, int] | None = None,
    *,
    prompt: str,
    model: str,
    identity: str | None,
    cache: str,
    decoding: Mapping[str, Any],
    server: Mapping[str, Any],
    **limits: Any,
) -> HttpJudge:
    """Makes a judge with its client and cache; sends nothing yet.

    Args:
      names: of the labels, by index.
      further: other names of labels, see `label_mentions.index`.
      prompt: name or path (`judge_prompt.load`).
      model: what the server calls the judge.
      identity: what tells the judge from others of that name, for the cache; None asks the server.
      cache: path or URL (`verdict_cache.open_cache`).
      decoding: `temperature`, `max_tokens`, `max_completion_tokens`, `seed` (None: not sent),
        `extra_body` (further fields of a request), and `structured` (as for `JudgeClient`).
      server: as for `JudgeClient`.
      **limits: `max_words`, `max_answer_bytes` and `tags`, as for `HttpJudge`.

    Raises:
      ValueError: an option that does not fit.
    """
    parsing.check_tags(limits["tags"])
    if not model:
        raise ValueError("set config.verifier.http_judge.model to what the server calls the judge")
    fields = {name: value for name, value in decoding.items() if value is not None}
    structured = fields.pop("structured")
    fields |= fields.pop("extra_body")
    # These would log each request.
    for library in ("httpx2", "openai"):
        logging_lib.getLogger(library).setLevel(logging_lib.WARNING)
    asked = judge_prompt.load(prompt)
    client = JudgeClient({"model": model, **fields}, asked, structured=structured, **server)
    settings = fields | {"structured": structured} | ({"identity": identity} if identity else {})
    judge = verdict_cache.Judge(model, asked.text, settings)
    opened = verdict_cache.open_cache(cache)
    return HttpJudge(names, client, opened, judge, further=further, **limits)
