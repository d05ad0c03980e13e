"""Asks the gRPC health service of the server in this container; exits 0 when it serves.

The address is the server's own setting. An address that means "every interface" is asked on
loopback.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_EVERYWHERE = {"0.0.0.0", "[::]", ""}  # noqa: S104  (told apart, not bound)
_SECONDS = 3.0


def main() -> int:
    """Return the exit code: 0 serving, 1 anything else."""
    address = os.environ.get("FEATURESTORE_SERVING_ADDRESS", "127.0.0.1:6566")
    host, _, port = address.rpartition(":")
    target = f"{'127.0.0.1' if host in _EVERYWHERE else host}:{port}"
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            sys.stderr.write(f"{target}: {error.code().name}\n")
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    sys.stdout.write(f"{target}: {status}\n")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
