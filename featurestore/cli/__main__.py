"""`python -m featurestore.cli` is the `featurestore` command."""

from __future__ import annotations

from featurestore.cli import main

if __name__ == "__main__":
    main()
