# SPDX-License-Identifier: Apache-2.0
"""A registry that misbehaves: `registry_stub.py PORT LAYOUT LOG` serves the image of an OCI layout over HTTP.

The first word of a repository says how: `good/…` as it is, `half/…` breaks off in the middle of each layer,
`hang/…` sends half of each and then nothing, `drip/…` half of each and then some bytes a second for ever.
Each request is a line in LOG. With a fourth word, each needs that as its bearer token.
"""

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, LAYOUT, LOG = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
TOKEN = sys.argv[4] if len(sys.argv) > 4 else ""
DESCRIPTOR = json.loads((LAYOUT / "index.json").read_text())["manifests"][0]
RAW = (LAYOUT / "blobs/sha256" / DESCRIPTOR["digest"][7:]).read_bytes()
MANIFEST = json.loads(RAW)
LAYERS = {layer["digest"] for layer in MANIFEST["layers"]}
LOCK = threading.Lock()
# bytes, and seconds between: with an hour for a pull it would not end before that
DRIP, DRIP_SECONDS = 16, 0.5


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with LOCK, LOG.open("a") as log:
            log.write(f"{self.command} {self.path}\n")
        if TOKEN and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Bearer realm="http://127.0.0.1:9/token",service="stub"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        words = self.path.strip("/").split("/")
        if words == ["v2"]:
            self._send(b"{}", "application/json")
        elif words[-2] == "manifests":
            # a content of its own for each repository that drips: what is pulled already is not pulled again
            named = {"annotations": {"repository": words[2]}} if words[1] == "drip" else {}
            data = json.dumps({**MANIFEST, **named}).encode() if named else RAW
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self._send(data, DESCRIPTOR["mediaType"], digest)
        else:
            data = (LAYOUT / "blobs/sha256" / words[-1][7:]).read_bytes()
            mood = words[1] if words[-1] in LAYERS else "good"
            self._send(data, "application/octet-stream", words[-1], mood)

    def _send(self, data: bytes, kind: str, digest: str = "", mood: str = "good") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data if mood == "good" else data[: len(data) // 2])
        self.wfile.flush()
        if mood == "hang":
            threading.Event().wait()
        if mood == "drip":
            for start in range(len(data) // 2, len(data), DRIP):
                time.sleep(DRIP_SECONDS)  # what it does to its clients
                self.wfile.write(data[start : start + DRIP])
        self.close_connection = mood != "good"

    def log_message(self, format: str, *args: object) -> None:
        """The log is ours."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
