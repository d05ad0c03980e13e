"""The soak: everything at once for a while, and nothing may fail, grow or differ."""
