"""Data: annotations read, checked and repaired; images read; what the network is fed.

Read in this order. Annotations: ``coco_json`` (the file), ``ids`` and ``normal_form`` (values in
any form that means one thing), ``checks`` (what would stop training), ``quality`` (what would spoil
it), ``findings`` (how people are told), ``repair``. Images: ``images`` (one reader for all), with
``image_formats``, ``pillow``, ``tiff`` and ``pixels`` below it, ``videos``. Training: ``datasets``
(files of the config, as Detectron2 knows them), ``mapper`` and ``train_loader``. ``shapes`` makes
up a data set.
"""
