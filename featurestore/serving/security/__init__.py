"""Who may call a server, and how much: TLS, keys, tokens, scopes, audit, limits; for any front."""
