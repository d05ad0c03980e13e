"""Definitions become a typed plan, and a plan becomes SQL. Nothing is read or written here."""
