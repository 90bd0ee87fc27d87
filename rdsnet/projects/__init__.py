"""Projects built on rdsnet, such as ``rdsnet.projects.authors_compat``.

An installation holds them in this folder. In a source checkout (and so in an editable installation)
they lie in ``projects/<Project>/<package>`` beside ``rdsnet/``: those folders join the search path.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]

# A folder projects/ next to an installed package is somebody else's: setup.py tells a checkout.
if (_CHECKOUT / "setup.py").is_file():
    __path__.extend(str(folder) for folder in sorted(_CHECKOUT.glob("projects/*/")))
