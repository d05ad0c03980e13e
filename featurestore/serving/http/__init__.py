"""The HTTP/JSON front: the same methods as over gRPC, for callers that have only `curl`."""
