"""Annotations in any format become COCO's content.

Read in this order: ``reading`` (which format it is), ``source`` (what was given, parsed once),
``values`` (nothing in it is taken for granted), ``collecting`` (images found, classes numbered,
what was left out), ``outlines`` and ``label_images`` (shapes and pictures of masks as polygons and
RLE); then one file per format: ``coco``, ``yolo``, ``labelme``, ``cvat``, ``via``,
``label_studio``, ``geojson``, ``voc``, ``mask_folders``. What they give goes through the same
checks as a json of COCO. A new format is a new file and its name in ``reading.FORMATS``.
"""

from rdsnet.data.formats.collecting import Export
from rdsnet.data.formats.reading import FORMATS, read_export

__all__ = ["FORMATS", "Export", "read_export"]
