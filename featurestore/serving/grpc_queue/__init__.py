"""Lookups over gRPC taken as events, so that those that wait at the same time are read together."""
