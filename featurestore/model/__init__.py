"""What people declare: frozen values without I/O. Compilation gives them types and meaning."""
