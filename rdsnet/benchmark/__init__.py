"""What ``rdsnet benchmark`` measures: the mask path alone, and whole models.

Read in this order: ``scene`` (what is computed on), ``straightforward`` and ``mask_path`` (the mask
path as one would write it first, and compared with ours), ``lazy`` (representations everywhere, or
where they are needed), ``models`` (whole models side by side), ``in_use`` (the model in the box,
its exported files, and prediction from files to files), ``goals`` (what they are wanted to reach),
``measure`` (time and memory), ``report`` (tables and plots). Import the modules directly:
``mask_path`` needs torch and pycocotools, ``models`` Detectron2 too.
"""
