"""The worked example, run from end to end: `make demo`, or `python -m demo`."""
