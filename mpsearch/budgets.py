"""Budgets: the grammar people write, and the limits it means."""
