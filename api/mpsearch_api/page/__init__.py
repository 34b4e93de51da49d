"""The web page: jobs, a form to submit one, and a job's answer with a budget slider.

It is a client of the REST API like any other: it asks through `mpsearch.client` in-process, with
the API key of the person who looks at it, so that it can show nothing the API would not.
"""

from mpsearch_api.page.mount import add_page

__all__ = ["add_page"]
