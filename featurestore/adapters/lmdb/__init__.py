"""The online store in an LMDB file: one machine, any number of processes, no server."""

from featurestore.adapters.lmdb.store import LmdbOnlineStore

__all__ = ["LmdbOnlineStore"]
