"""Data: annotations read, checked and repaired; images read; what the network is fed.

Read in this order. Annotations: ``coco_json`` (the file), ``findings`` (how people are told),
``ids``, ``segmentation`` and ``normal_form`` (values in any form that means one thing), ``rle``,
``checks`` (what would stop training), ``quality`` (what would spoil it) with ``statistics``,
``crowds``, ``holes`` and ``class_names``; ``formats`` (those of any tool). Images: ``images`` (one
reader for all) with ``image_formats``, ``pillow``, ``tiff`` and ``pixels`` below it, ``videos``,
``windows`` (large ones in parts) with ``slides``; ``arrays`` and ``channels`` (no photographs).
Images and annotations together: ``image_paths`` and ``file_names`` (which file is meant),
``image_files`` and ``image_sizes`` (is it whole, and of the declared size), ``equal_images``,
``threads`` (many files at once), ``repair``, ``merging`` (corrections come back). Training:
``datasets`` (files of the config, as Detectron2 knows them), ``mapper``, ``augmentations``,
``moved_masks`` and ``masks`` (one image), ``mosaic`` (parts of four), ``train_loader`` and
``seeding`` (which image comes when), ``object_sizes`` (what the model has learnt to see).
``georeference`` says where on a map an image lies, ``shapes`` makes up a data set.
"""
