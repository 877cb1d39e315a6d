"""An S3 server on loopback, for the tests of storage that is not on this machine."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "jsae"


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server with an empty bucket; gives the environment that points at it."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    # what a server of this process held before is kept beyond its end
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        ).create_bucket(Bucket=BUCKET)
        yield environment
    finally:
        server.stop()
