"""Synchronous solving in processes of their own, without torch."""
