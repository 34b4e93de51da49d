"""Allocations in the languages of other tools."""
