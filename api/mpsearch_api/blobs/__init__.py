"""Uploaded and produced bytes, stored under their own hash."""
