"""Hardware costs: what every layer spends of every resource at every option."""
