"""The front for the Connect protocol: messages as of gRPC, over plain HTTP/1.1."""
