"""A judge on loopback whose verdicts and faults are scripted.

`python judge_server.py PORT FOLDER` serves the plain judge until it is killed, and appends a line
for each request to FOLDER/requests.
"""

import collections
import contextlib
import http.server
import json
import pathlib
import socket
import sys
import threading
import time
import zlib

# Truths about which a client asks before all others; these requests are kept apart.
PROBED = {"great spotted woodpecker", "boeing 767 300", "cup cakes"}
LABELS = ["wrong", "abstain", "generic", "less specific", "specific", "more specific"]


def verdict(pair) -> str:
    """The judge's opinion: some label, the same for equal pairs in every process."""
    return LABELS[zlib.crc32(json.dumps(pair, sort_keys=True).encode()) // 7 % 6]


def pair_of(body) -> dict:
    """The pair in a request: the last line of the message."""
    return json.loads(body["messages"][-1]["content"].splitlines()[-1])


def completion(content, choices=1, reason="stop") -> bytes:
    """The body of a reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    choice["finish_reason"] = reason
    return json.dumps({"object": "chat.completion", "choices": [choice] * choices}).encode()


class Fault:
    """What goes wrong with a request: `send(handler, good)` replies in place of the judge."""

    def __init__(self, send):
        self.send = send


def status(number, body=b"{}", **headers):
    """A reply with another status."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(lambda handler, good: handler.reply(number, body, **headers))


def unknown(field):
    """The refusal of a server that does not know a field."""
    message = f"Unsupported parameter: {field!r} is not supported with this model."
    return status(400, json.dumps({"error": {"message": message}}).encode())


def body(content):
    """A reply with status 200 and this body."""
    return Fault(lambda handler, good: handler.reply(200, content))


def _cut(handler, good):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + good[:20])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def hang(seconds):
    """No reply for so long, and then the right one, too late."""

    def send(handler, good):
        time.sleep(seconds)
        handler.reply(200, good)

    return Fault(send)


# One of each kind; the right verdict is in none of them.
FAULTS = {
    "429": status(429),
    "429 for a second": status(429, **{"Retry-After": "1"}),
    "500": status(500, b"<html>oops"),
    "503": status(503),
    "hang": hang(4),
    "cut": Fault(_cut),
    "malformed JSON": body(b'{"choices": [{"mess'),
    "deep JSON": body(b"[" * 100_000),
    "empty": body(b""),
    "no choice": body(completion("", choices=0)),
    "two choices": body(completion('{"verdict": "specific"}', choices=2)),
    "no text": body(completion(None)),
    "unknown label": body(completion('{"verdict": "perfect"}')),
    "prose": body(completion("I would say it is specific.", reason="length")),
    "10 MB": body(completion('{"verdict": "specific"}' + " " * 10_000_000)),
}


class JudgeServer:
    """The server, in a thread.

    Attributes:
      url: what a client is configured with.
      requests: bodies of all requests so far, but for the probes at a client's start.
      probes: bodies of these.
      headers: of the last request.
      most_at_once: requests that were being answered at the same time.
    """

    def __init__(
        self, script=None, *, port=0, seconds=0.0, opinion=verdict, probed=None, models=None
    ):
        """Starts it.

        Args:
          script: (body, number of earlier requests about this pair) -> `Fault` or None.
          port: 0 for any that is free.
          seconds: that every reply takes.
          opinion: pair -> label.
          probed: as `script`, for the probes.
          models: name -> checkpoint (None: not said), as the list of models has them; {} for
            no list.
        """
        self.probes, models = [], {"judge": "/models/judge"} if models is None else models
        self.requests, self.headers, self.most_at_once = [], {}, 0
        self._now, self._lock = 0, threading.Lock()
        self._seen = collections.Counter()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                pair = pair_of(asked)
                probe = pair["truth"] in PROBED
                with outer._lock:
                    (outer.probes if probe else outer.requests).append(asked)
                    outer.headers = {k.title(): v for k, v in self.headers.items()}
                    number = outer._seen[json.dumps(pair)]
                    outer._seen[json.dumps(pair)] += 1
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                good = completion(json.dumps({"verdict": opinion(pair)}))
                judge = probed if probe else script
                fault = judge(asked, number) if judge else None
                time.sleep(seconds)
                # A client may be gone when the reply comes.
                with contextlib.suppress(OSError):
                    fault.send(self, good) if fault else self.reply(200, good)
                with outer._lock:
                    outer._now -= 1

            def do_GET(self):
                if self.path == "/v1/models" and models:
                    rows = [{"id": name, "root": root} for name, root in models.items()]
                    self.reply(200, json.dumps({"object": "list", "data": rows}).encode())
                else:
                    self.reply(200 if self.path == "/health" else 404, b"")

            def reply(self, number, content, **headers):
                self.send_response(number)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self._connections = connections = set()

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def process_request(self, request, address):
                connections.add(request)
                super().process_request(request, address)

            def shutdown_request(self, request):
                connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, *args):
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._server.shutdown()
        self._server.server_close()
        # A connection that is kept alive has a thread of its own; a killed server has none.
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    log = pathlib.Path(sys.argv[2]) / "requests"

    def note(asked, number):
        with log.open("a") as file:
            file.write(json.dumps(pair_of(asked)) + "\n")

    with JudgeServer(note, port=int(sys.argv[1]), seconds=0.02):
        threading.Event().wait()
