"""gRPC: the server, the client and the conversion between them and the services."""
