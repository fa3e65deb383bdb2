"""A real S3 server in this process, and before it a proxy that cuts chosen requests and answers."""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
from dataclasses import dataclass, field

BUCKET = "bucket"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"  # noqa: E501
BUSY_BODY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"  # noqa: E501


@dataclass
class Cut:
    """What is to happen to the next `times` requests whose first line holds `match`.

    what: "request" breaks the connection after `after` bytes of the request, "answer" after `after`
        bytes of the
    answer to the whole request, "busy" answers 503. every: only each so many of them.
    """

    match: bytes
    what: str
    after: int = 0
    times: int = 1
    every: int = 1
    seen: int = 0
    done: int = 0


@dataclass
class CuttingProxy:
    """Forwards TCP to a port; keeps the first lines of all requests."""

    target: int
    cuts: list[Cut] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *cuts: Cut) -> None:
        """Forget what was asked before, and do these cuts."""
        with self.lock:
            self.cuts, self.lines = list(cuts), []

    def requests(self, match: bytes) -> int:
        """How many requests there were since `cut`, by their first lines."""
        with self.lock:
            return sum(match in line for line in self.lines)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, in one thread: a socket that another thread waits on cannot be reset at
        once.
        """
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            cut: Cut | None = None
            left = 0
            try:
                while True:
                    for end in select.select([client, server], [], [])[0]:
                        data = end.recv(65_536)
                        if not data:
                            return
                        line = data.partition(b"\r\n")[0]
                        if end is client and line.endswith(
                            b"HTTP/1.1"
                        ):  # none is sent before the last one's answer
                            cut = self._chosen(line)
                            left = cut.after if cut else 0
                            if cut and cut.what == "busy":
                                client.sendall(BUSY % (len(BUSY_BODY), BUSY_BODY))
                                client.shutdown(socket.SHUT_WR)
                                client.recv(65_536)
                                return
                        concerned = cut and cut.what == ("request" if end is client else "answer")
                        if concerned and not data.startswith(b"HTTP/1.1 100"):
                            data, whole = data[:left], len(data)
                            left -= whole
                        (server if end is client else client).sendall(data)
                        if concerned and left <= 0 and not data.startswith(b"HTTP/1.1 100"):
                            for broken in (
                                client,
                                server,
                            ):  # a reset, which no server takes for a request's end
                                broken.setsockopt(
                                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                                )
                            return
            except OSError:
                return

    def _chosen(self, line: bytes) -> Cut | None:
        with self.lock:
            self.lines.append(line)
            for cut in self.cuts:
                if cut.match in line and cut.done < cut.times:
                    cut.seen += 1
                    if cut.seen % cut.every == 0:
                        cut.done += 1
                        return cut
        return None


class S3Server:
    """A server, a proxy, and a client of the server that knows nothing of fsspec."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        port = self.server.get_host_and_port()[1]
        self.proxy = CuttingProxy(port)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # so that what is tried again is tried again by us
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def objects(self, prefix: str) -> dict[str, int]:
        """Keys below a prefix, with their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def content(self, key: str) -> bytes:
        """The bytes of an object."""
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def modified(self, key: str) -> float:
        """When an object was written, in seconds."""
        return float(self.client.head_object(Bucket=BUCKET, Key=key)["LastModified"].timestamp())

    def stop(self) -> None:
        """End the server and the proxy."""
        self.proxy.listener.close()
        self.server.stop()
