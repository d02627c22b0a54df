"""A server of chat completions that misbehaves as its question says; run as a process of its own, prints its port."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SEEN: Counter[str] = Counter()
KEYS: list[str] = []
LOCK = threading.Lock()
REPLIES = {
    "good": "It is fine. <score>8</score>",
    "best": "Perfect.\n<score>10</score>\n",
    "silent": "I cannot say.",
    "twice": "The answer says <score>10</score>, so <score>3</score>",
    "early": "<score>9</score> is what I would give.",
    "excess": "<score>11</score>",
    "biased": "A comes first. [[A>>B]]",
    "shy": "Both are good.",
}


def case_of(text: str) -> str:
    """The word after `case:`, `good` without one."""
    return (text.partition("case:")[2].split() or ["good"])[0]


def rewritten(case: str, solution: str) -> str:
    """The solution with a summary, or what a rewriter may do wrong."""
    chain = solution.partition("<think>")[2].partition("</think>")[0].strip()
    answer = solution.partition("<answer>")[2].partition("</answer>")[0].strip()
    if case == "corrects":
        answer += "1"
    if case == "translates":
        chain = "首先 加上 所有 数字"
    if case == "loops":
        chain = "first add three and four then look again . " * 4
    if case == "chats":
        return f"Sure! Here it is: {chain}"
    return f"<think>\nread again : {chain}\n</think>\nso it is \\boxed{{{answer}}}"


def reply_to(text: str) -> str:
    """By the case; a fair judge of pairs looks for the word `better`."""
    case = case_of(text)
    if text.startswith("Rewrite a solution"):
        return rewritten(case, text.partition("[Solution]")[2].partition("Reply in exactly")[0])
    if case == "fair":
        answer_a = text.partition("[Answer A]")[2].partition("[Answer B]")[0]
        return "[[A>>B]]" if "better" in answer_a else "[[B>>A]]"
    if case == "close":
        answer_a = text.partition("[Answer A]")[2].partition("[Answer B]")[0]
        return "[[A>B]]" if "better" in answer_a else "[[B>A]]"
    return REPLIES.get(case, REPLIES["good"])


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions; GET /seen tells what was asked."""

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        with LOCK:
            self._send(200, json.dumps({"seen": dict(SEEN), "keys": KEYS}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        case = case_of(text)
        with LOCK:
            SEEN[case] += 1
            times = SEEN[case]
            KEYS.append(self.headers.get("Authorization", ""))
        if self.path != "/v1/chat/completions" or body["model"] != "judge-1":
            self._send(404, b'{"error": "no such model"}')
        elif case == "slow":
            time.sleep(20)
        elif case == "drips":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif case == "busy" and times <= 2:
            self._send(429, b'{"error": "slow down"}', {"Retry-After": "0"})
        elif case == "flaky" and times == 1:
            self._send(503, b"overloaded")
        elif case == "broken":
            self._send(200, b'{"choices": [{"message": {"content": "<score>')
        elif case == "strange":
            self._send(200, b'{"choices": []}')
        elif case == "closes":
            self.connection.close()
        elif case == "forbidden":
            self._send(401, json.dumps({"error": f"wrong key: {self.headers.get('Authorization')}"}).encode())
        elif case == "redirects":
            self._send(307, b"", {"Location": "http://127.0.0.1:1/"})
        else:
            usage = {"prompt_tokens": 100, "completion_tokens": 20}
            message = {"role": "assistant", "content": reply_to(text)}
            choice = {"message": message, "finish_reason": "length" if case == "long" else "stop"}
            self._send(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()
