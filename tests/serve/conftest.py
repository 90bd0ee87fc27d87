"""Fixtures of the service, which are the page's too."""

from helpers.uploads import photo, weights  # noqa: F401
