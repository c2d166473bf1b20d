"""A stand-in of the Weights & Biases service on loopback: one run's history, and bad manners.

It answers the few questions that the client asks of it, remembers what it is given, and on `mood`
answers every request with status 500, or with nothing at all.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "a" * 40


class Service:
    """What the service knows: `history` rows in order, `config`, `summary` of its only run."""

    def __init__(self) -> None:
        self.mood: Literal["well", "500", "silent"] = "well"
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.requests = 0
        self.exists = False
        self._ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the client finds it."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}

    @contextmanager
    def running(self) -> Iterator["Service"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._server.shutdown()
            self._server.server_close()

    def wait_silently(self) -> None:
        self._ended.wait(600)

    def answer(self, path: str, body: bytes) -> Any:
        if path.endswith("/file_stream"):
            return self._take(json.loads(body))
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        data = {
            "RunResumeStatus": self._resume,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._files,
        }
        found = data.get(asked["operationName"])
        return {"data": found(asked["variables"]) if found else {}}

    def _take(self, sent: dict[str, Any]) -> dict[str, Any]:
        for name, chunk in sent.get("files", {}).items():
            rows = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                self.history[chunk["offset"] :] = rows
            elif name == "wandb-summary.json" and rows:
                self.summary = rows[-1]
        return {}

    def _resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        if not self.exists:
            return {"model": {"bucket": None}}
        tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
        bucket = {
            **_bucket(asked["name"]),
            "summaryMetrics": json.dumps(self.summary),
            "logLineCount": 0,
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "config": json.dumps(self.config),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**_NAMED, "entity": _NAMED, "bucket": bucket}}

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        inserted, self.exists = not self.exists, True
        self.config |= json.loads(asked.get("config") or "{}")
        bucket = {
            **_bucket(asked.get("name") or "run"),
            "description": None,
            "config": json.dumps(self.config),
            "sweepName": None,
            "project": {**_NAMED, "entity": _NAMED},
            "historyLineCount": len(self.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _files(self, asked: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.environment['WANDB_BASE_URL']}/upload"
        files = [{"name": name, "uploadUrl": url} for name in asked["files"]]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}


_NAMED = {"id": "1", "name": "mgpt"}


def _bucket(name: str) -> dict[str, Any]:
    return {"id": "run", "name": name, "displayName": name}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go without a word."""


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            service.requests += 1
            if service.mood == "silent":
                service.wait_silently()
                self.close_connection = True
                return
            status, words = 500, b"{}"
            if service.mood == "well":
                status, words = 200, json.dumps(service.answer(self.path, body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler
