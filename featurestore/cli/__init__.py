"""The command line: commands return values, `render` prints them as text or JSON."""
