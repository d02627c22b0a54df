"""An OpenAI-compatible server asked for one chat completion at a time: clock, retries, tokens and cost.

The standard library alone; redirects are not followed, so that the key goes nowhere else, and proxies are not used.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from r1fast.config import ConfigError, JudgeConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_REPLY_BYTES = 4 << 20
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 60.0
_AGAIN = frozenset({408, 409, 425, 429})


class EndpointError(Exception):
    """No reply: `timeout` where the clock ran out, else `crash`; `again` where another attempt may succeed."""

    def __init__(self, outcome: Literal["timeout", "crash"], message: str, *, again: bool, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.outcome, self.again, self.wait_s = outcome, again, wait_s


@dataclass
class Usage:
    """What has been used; any thread may add to it. A question is a call and its retries, `failed` without a reply."""

    questions: int = 0
    failed: int = 0
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_off: int = 0  # replies that reached judge.max_tokens
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count, by the names above."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def cost(self, config: JudgeConfig) -> float:
        """In the currency of the prices."""
        million = 1e6
        return (
            self.prompt_tokens / million * config.prompt_price + self.completion_tokens / million * config.reply_price
        )


class Endpoint:
    """The server of [judge]; `ask` may be called from many threads. It shows its progress to `beat`.

    Raises ConfigError for an address that is none, and for a key's variable that is not set.
    """

    def __init__(self, config: JudgeConfig, beat: Callable[[str], object] = len) -> None:
        self._config, self.beat = config, beat
        self.usage = Usage()
        self.last_error = ""
        address = urlsplit(config.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            shown = repr(config.endpoint) if address.username is None else "an address with a password"
            raise ConfigError(f"judge.endpoint = {shown} must be like https://host:port/v1")
        self._secure, self._host, self._port = address.scheme == "https", address.hostname, address.port
        self._path = f"{address.path.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        self._key = ""
        if config.key_variable:
            self._key = key = os.environ.get(config.key_variable, "").strip()
            if not key:
                raise ConfigError(
                    f"judge.key_variable = {config.key_variable!r}: the environment has no such variable; export it, "
                    "or set judge.key_variable = '' for a server without keys"
                )
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, prompt: str, *, deadline: float, seed: int = 0) -> str:
        """The reply to one user message, by `time.monotonic()` <= `deadline`. Raises EndpointError."""
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
            "seed": seed,
        }
        self.usage.add(questions=1)
        try:
            return self._ask_again_and_again(json.dumps(body).encode(), deadline)
        except EndpointError as error:
            self.usage.add(failed=1)
            self.last_error = str(error)
            raise

    def _ask_again_and_again(self, payload: bytes, deadline: float) -> str:
        attempt = 0
        while True:
            try:
                return self._ask_once(payload, deadline)
            except EndpointError as error:
                wait_s = max(error.wait_s, min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0))
                attempt += 1
                if not error.again or attempt > self._config.retries or time.monotonic() + wait_s >= deadline:
                    raise
                self.usage.add(retries=1)
                time.sleep(wait_s)

    def ask_all(self, prompts: Sequence[str]) -> list[str | EndpointError]:
        """Replies in order, `concurrency` questions at a time, within `total_timeout_s`."""
        deadline = time.monotonic() + self._config.total_timeout_s

        def reply(prompt: str) -> str | EndpointError:
            try:
                return self.ask(prompt, deadline=deadline)
            except EndpointError as error:
                return error

        return self.act_on_all(reply, prompts)

    def act_on_all(self, act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Results in order, `concurrency` at a time; each that is there is shown to `beat`."""
        with ThreadPoolExecutor(self._config.concurrency) as threads:
            begun = [threads.submit(act, item) for item in items]
            for _ in as_completed(begun):
                self.beat("a reply")
            return [one.result() for one in begun]

    def take_metrics(self) -> dict[str, float]:
        """Counts since the last call, the cost in the currency of the prices; not while `ask` runs.

        Those of steps and ranks add up.
        """
        usage, self.usage = self.usage, Usage()
        return {
            "judge/questions_count": usage.questions,
            "judge/failed_count": usage.failed,
            "judge/cut_off_count": usage.cut_off,
            "judge/calls_count": usage.calls,
            "judge/retries_count": usage.retries,
            "judge/prompt_tokens_count": usage.prompt_tokens,
            "judge/reply_tokens_count": usage.completion_tokens,
            "judge/cost_count": usage.cost(self._config),
        }

    def _ask_once(self, payload: bytes, deadline: float) -> str:
        timeout_s = min(self._config.timeout_s, deadline - time.monotonic())
        if timeout_s <= 0:
            total_s = self._config.total_timeout_s
            raise EndpointError("timeout", f"no time is left of judge.total_timeout_s = {total_s:g}", again=False)
        self.usage.add(calls=1)
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s)
        clock: threading.Timer | None = None
        expired = threading.Event()
        try:
            connection.connect()
            opened = connection.sock
            clock = threading.Timer(timeout_s, _cut, (opened, expired))  # a socket's own clock begins anew each read
            clock.daemon = True
            clock.start()
            connection.request("POST", self._path, payload, self._headers)
            answer = connection.getresponse()
            text = answer.read(MAX_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set() or isinstance(error, TimeoutError):
                raise EndpointError("timeout", f"no reply within {timeout_s:.1f} s", again=True) from None
            raise EndpointError("crash", f"{type(error).__name__}: {error}", again=True) from None
        finally:
            if clock is not None:
                clock.cancel()
            connection.close()
        if expired.is_set():
            raise EndpointError("timeout", f"no whole reply within {timeout_s:.1f} s", again=True)
        if answer.status != 200:
            again = answer.status in _AGAIN or answer.status >= 500
            said = self._shown(text, 300)
            wait_s = _wait_s(answer.getheader("Retry-After"))
            raise EndpointError("crash", f"HTTP {answer.status}: {said}", again=again, wait_s=wait_s)
        return self._content(text)

    def _content(self, text: bytes) -> str:
        try:
            reply: Any = json.loads(text)
            choice = reply["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str):
                raise TypeError(f"content is {type(content).__name__}")
            usage = reply.get("usage") or {}
            counts = [_whole(usage, name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = self._shown(text, 80)
            message = f"no chat completion ({type(error).__name__}): {said!r}"
            raise EndpointError("crash", message, again=True) from None
        cut_off = int(choice.get("finish_reason") == "length")
        self.usage.add(prompt_tokens=counts[0], completion_tokens=counts[1], cut_off=cut_off)
        return content

    def _shown(self, text: bytes, length: int) -> str:
        """The beginning of what a server said, without the key: some repeat it."""
        said = text.decode("utf-8", "replace")
        return (said.replace(self._key, "***") if self._key else said)[:length]


def _cut(opened: socket.socket, expired: threading.Event) -> None:
    expired.set()
    try:
        opened.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed already
        return


def _wait_s(header: str | None) -> float:
    """Seconds that the server asks for, at most `MAX_WAIT_S`; dates count as nothing."""
    try:
        return min(MAX_WAIT_S, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0


def _whole(usage: Mapping[str, Any], name: str) -> int:
    count = usage.get(name, 0)
    return count if isinstance(count, int) and count >= 0 else 0
