"""The laws as pure code: no I/O, no engine, no clock. What stands here decides what is right."""
