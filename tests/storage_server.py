"""A server that speaks S3, on this machine, and a line to it that can be cut."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from typing import Literal

BUCKET = "bucket"
Cut = Literal["before", "after"] | None
"""What becomes of a request: the line is cut before the server sees it, or after the server did what is asked for, or not."""


class StorageServer:
    """moto's server in a thread, with one bucket.

    Attributes:
        url: where requests go, through the line.
        cut: says of each request, by its first line, what becomes of it.
        seen: the first lines of the requests so far.
        sent: bytes that came back.
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._target = self._server.get_host_and_port()
        self._line = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._line.getsockname()[1]}"
        self.cut: Callable[[str], Cut] = lambda request: None
        self.seen: list[str] = []
        self.sent = 0
        threading.Thread(target=self._listen, daemon=True).start()
        signature = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        request = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT", headers={"Authorization": signature})
        urllib.request.urlopen(request).close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process has to know to use it."""
        return {
            "AWS_ACCESS_KEY_ID": "an-identity",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }

    def cut_once(self, pattern: str, how: Cut, times: int = 1) -> None:
        """Cut the line at the next requests of a kind."""
        left = [times]

        def cut(request: str) -> Cut:
            if left[0] and re.match(pattern, request):
                left[0] -= 1
                return how
            return None

        self.cut = cut

    def mend(self) -> None:
        """Cut nothing any more."""
        self.cut = lambda request: None

    def damage(self, address: str, pattern: str, content: bytes | None) -> int:
        """Put this content, or nothing, in the place of all objects below an address whose names match; gives how many."""
        import boto3

        options = {"endpoint_url": self.url, "region_name": "us-east-1"}
        client = boto3.client("s3", aws_access_key_id="x", aws_secret_access_key="y", **options)
        prefix = address.removeprefix(f"s3://{BUCKET}/") + "/"
        names = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
        chosen = [name for name in names if re.search(pattern, name)]
        for name in chosen:
            if content is None:
                client.delete_object(Bucket=BUCKET, Key=name)
            else:
                client.put_object(Bucket=BUCKET, Key=name, Body=content)
        return len(chosen)

    def stop(self) -> None:
        self._line.close()
        self._server.stop()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._line.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        cut: list[Cut] = [None]

        def back() -> None:
            with contextlib.suppress(OSError):
                while block := server.recv(1 << 16):
                    if cut[0] == "after":
                        break
                    self.sent += len(block)
                    client.sendall(block)
            _hang_up(client, server)

        threading.Thread(target=back, daemon=True).start()
        with contextlib.suppress(OSError):
            while block := client.recv(1 << 16):
                if begun := re.match(rb"(GET|PUT|POST|HEAD|DELETE) \S+ ", block):
                    request = begun[0].decode()
                    self.seen.append(request)
                    cut[0] = self.cut(request)
                    if cut[0] == "before":
                        break
                server.sendall(block)
        if cut[0] != "after":  # else the answer, when it comes, ends the line
            _hang_up(client, server)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
