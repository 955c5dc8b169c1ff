"""As much of curl as the examples use, for machines that have none."""

from __future__ import annotations

import argparse
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit


def main() -> None:
    """Send one request and print the answer as it comes."""
    parser = argparse.ArgumentParser(prog="curl")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-N", action="store_true")
    parser.add_argument("-i", action="store_true")
    parser.add_argument("-X", default=None)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", "--data-binary", default=None)
    parser.add_argument("-o", type=Path, default=None)
    parser.add_argument("url")
    given = parser.parse_args()
    url = urlsplit(given.url)
    body = None if given.data_binary is None else given.data_binary.encode()
    headers = {} if body is None else {"Content-Type": "application/x-www-form-urlencoded"}
    for header in given.H:
        name, _, value = header.partition(":")
        headers[name.strip().title()] = value.strip()
    connection = HTTPConnection(url.netloc)
    target = url.path + (f"?{url.query}" if url.query else "")
    connection.request(given.X or ("GET" if body is None else "POST"), target, body, headers)
    answer = connection.getresponse()
    out = given.o.open("wb") if given.o else sys.stdout.buffer
    if given.i:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        lines += [f"{name}: {value}" for name, value in answer.getheaders()]
        out.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    while data := answer.read1(1 << 16):
        out.write(data)
        out.flush()


if __name__ == "__main__":
    main()
