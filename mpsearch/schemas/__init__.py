"""Pydantic models that the library, the client and the service share."""
