"""The HTTP face of the service."""

from mpsearch_api.http.app import create_app

__all__ = ["create_app"]
