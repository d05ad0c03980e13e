"""Public: conformance suites, strategies and fakes for adapters and for definitions."""
