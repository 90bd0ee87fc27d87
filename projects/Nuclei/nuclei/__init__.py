"""A trained model of cell nuclei: ``nuclei.pth`` and ``model_card.md`` in this folder.

``rdsnet.checkpoint.shipped`` finds them by the entry point ``nuclei`` in the group
``rdsnet.models``. There is no code: the model is RDSNet's lite one.
"""
