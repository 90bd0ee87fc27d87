"""The service of ``rdsnet serve``: images are posted, objects come back.

Read in this order: ``server`` (its beginning and end), ``web`` (what is answered where),
``service`` (an image on its way), ``batches`` (the one thread of the model), ``bodies`` (what is
sent, up to a limit), ``answers`` (the formats of what comes back), ``metrics`` (what Prometheus is
told).
"""

from rdsnet.serve.server import serve

__all__ = ["serve"]
