"""Who may do what, for servers and for those who open a repository: keys, scopes, the audit."""
