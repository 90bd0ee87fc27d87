"""For all tests, here and in projects/: they may run in any order.

Every test begins with the same random numbers, by the seed that pytest-randomly prints (it seeds
Python's and numpy's itself), and leaves the process as it was.
"""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

LOGGERS = ("rdsnet", "detectron2", "fvcore")


@pytest.fixture(autouse=True)
def random_numbers(request):
    torch.manual_seed(request.config.getoption("randomly_seed", 0))


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Put back what commands set for a whole process, and forget the datasets they register."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    propagated = [logger.propagate for logger in loggers]
    pixels, threads = Image.MAX_IMAGE_PIXELS, torch.get_num_threads()
    catalogs = (DatasetCatalog, MetadataCatalog)
    names = [set(catalog) for catalog in catalogs]
    yield
    for logger, propagate in zip(loggers, propagated, strict=True):
        logger.propagate = propagate
    Image.MAX_IMAGE_PIXELS = pixels
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    for catalog, known in zip(catalogs, names, strict=True):
        for name in set(catalog) - known:
            catalog.pop(name)
