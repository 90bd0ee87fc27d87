"""Fixtures of the page, which are the service's too."""

from helpers.uploads import photo, weights  # noqa: F401
