"""The local page, where an image is dropped and objects come out. All of it is in ``page``."""

from rdsnet.app.page import serve

__all__ = ["serve"]
