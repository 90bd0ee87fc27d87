"""Pictures: objects drawn onto images, contact sheets, curves, pages.

Read in this order: ``objects`` (what is drawn, whatever it comes from), ``overlay`` (onto an image)
and ``text`` (in any script), ``sheet``; ``curves``, ``figures``, ``representations`` and ``mbrm``
(what a report and a study show), ``page`` (what these stand on).
"""

from rdsnet.visualization.curves import plot_training_curves
from rdsnet.visualization.objects import (
    Objects,
    match_colors,
    objects_from_annotations,
    objects_from_instances,
    objects_from_results,
)
from rdsnet.visualization.overlay import draw_objects
from rdsnet.visualization.sheet import captioned, contact_sheet, write_sheet

__all__ = [
    "Objects",
    "captioned",
    "contact_sheet",
    "draw_objects",
    "match_colors",
    "objects_from_annotations",
    "objects_from_instances",
    "objects_from_results",
    "plot_training_curves",
    "write_sheet",
]
