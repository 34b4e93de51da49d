"""The jobs table and what lies beside it: events, artifacts, uploads, keys."""
