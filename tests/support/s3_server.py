"""An S3 server on this machine (moto's), and a proxy before it that spoils answers: 5xx, slow ones,
cut connections.

Real requests by a real client; nothing here knows pytest.
"""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

from tests.support.helpers import (
    run_server,  # in full: the bench, which is no test, takes this module too
)

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def serve_s3() -> Iterator[str]:
    """The address of a server without buckets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint: str, name: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()


ANSWERS = {
    "error": (500, "InternalError"),
    "slowdown": (503, "SlowDown"),
    "throttled": (429, "TooManyRequests"),
    "late": (400, "RequestTimeout"),
    "range": (416, "InvalidRange"),
    "large": (400, "EntityTooLarge"),
    "unknown": (501, "NotImplemented"),
    "denied": (403, "AccessDenied"),
    "skewed": (403, "RequestTimeTooSkewed"),
}


class Faults:
    """What happens to requests: one of `kinds` to a share of them, drawn from a seed.

    error: 500 instead of an answer. lost: the request is done, the answer is not sent. cut: half of
        the answer is. slow: it
    comes late. others: the status in ANSWERS. `counts` tells how many of each, and of all.

    ignored: headers of conditions that are not looked at, as by stores that do not know them.
    """

    KINDS = ("error", "lost", "cut", "slow", "slowdown")

    def __init__(
        self,
        share: float,
        *,
        seed: int = 0,
        kinds: tuple[str, ...] = KINDS,
        ignored: tuple[str, ...] = (),
    ) -> None:
        self.share, self.kinds, self.counts, self.ignored = share, kinds, Counter(), ignored
        self._random, self._lock = random.Random(seed), threading.Lock()

    def draw(self) -> str | None:
        with self._lock:
            self.counts["all"] += 1
            if self._random.random() >= self.share:
                return None
            kind = self._random.choice(self.kinds)
            self.counts[kind] += 1
            return kind


@contextmanager
def serve_faults(endpoint: str, faults: Faults) -> Iterator[str]:
    """The address of a proxy before `endpoint`."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.draw()
            if fault in ANSWERS:
                status, code = ANSWERS[fault]
                self._answer(status, [], f"<Error><Code>{code}</Code></Error>".encode())
                return
            status, headers, data = self._forward(body)
            if fault == "slow":
                time.sleep(0.5)
            if fault == "lost":
                self.close_connection = True
                return
            self._answer(status, headers, data, cut=fault == "cut")

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in faults.ignored
            }
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), data

        def _answer(
            self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get(
                "content-length", str(len(data))
            )
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    with run_server(server) as address:
        yield address
