"""What a server measures, counted in slots that another process can read, shown to Prometheus."""
