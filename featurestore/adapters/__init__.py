"""One file, one technology. Adapters translate; none knows another, and only wiring knows them."""
