"""Putting options on a model's layers, calibrating what that needs, and measuring the outcome."""
