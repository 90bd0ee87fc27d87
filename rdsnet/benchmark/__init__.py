"""What ``rdsnet benchmark`` measures: the mask path alone, and whole models.

Import the modules directly: ``mask_path`` needs torch and pycocotools, ``models`` Detectron2 too.
"""
