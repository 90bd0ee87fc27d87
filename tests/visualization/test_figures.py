"""Figures of the report: readable on any page, whatever the numbers are."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rdsnet.visualization import figures
from rdsnet.visualization.representations import reduce_representations

PARTS = {"thresholds": [0.5, 0.55], "sizes": {"all": [9.0, None], "small": [None, None]}}


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]


def all_figures():
    zeros, some = np.zeros(0), np.array([0.0, 1.5, -300.0])
    yield figures.loss_figure({"total_loss": [(0, 2.0), (1, float("nan"))], "loss_new": [(0, 1.0)]})
    yield figures.loss_figure({"total_loss": [(20 * k, 3.0 / (k + 1)) for k in range(50)]})
    yield figures.ap_over_time_figure({"bbox/AP": [(5, 10.0), (9, float("nan"))]})
    yield figures.iou_and_size_figure({"bbox": PARTS, "segm": PARTS})
    yield figures.error_figure({"bbox": {"location": 0.0, "missed": 100.0}})
    yield figures.edge_figure(some, some, some)
    yield figures.edge_figure(some, zeros, zeros)
    yield figures.points_figure(np.eye(3), np.eye(3), np.zeros((0, 3)), np.zeros((0, 3)))


def test_figures_take_their_ink_from_the_page_and_share_no_names():
    ids = []
    for svg in all_figures():
        root = ElementTree.fromstring(svg)  # well-formed
        assert "#000000" not in svg and figures.INK not in svg
        assert "currentColor" in svg or not texts(svg)
        assert root.get("viewBox") and root.get("width") is None
        own = [e.get("id") for e in root.iter() if e.get("id")]
        for reference in re.findall(r'(?:href="#|url\(#)([^)"]+)', svg):
            assert reference in own
        ids += own
    assert len(ids) == len(set(ids))


def test_losses_of_any_name_are_drawn():
    shown = texts(figures.loss_figure({"loss_cls": [(0, 1.0)], "loss_center_$x$": [(0, 2.0)]}))
    assert "classification" in shown and "center $x$" in shown


def test_without_evaluation_there_is_no_figure_of_ap():
    assert figures.ap_over_time_figure({"total_loss": [(0, 1.0)]}) is None
    assert figures.ap_over_time_figure({"a/bbox/AP": [(0, 1.0)]}, "b") is None


def test_pixels_lie_with_their_object():
    """Two objects, each with pixels along its own representation: reduced, they still coincide."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(2, 32))
    psi = np.repeat(phi, 50, axis=0) + rng.normal(0, 0.01, (100, 32))
    pixels, objects = reduce_representations(psi.T.reshape(32, 10, 10), phi)
    similar = pixels.reshape(-1, 3) @ objects.T
    assert np.linalg.norm(pixels, axis=-1) == pytest.approx(1)
    assert (similar[:50, 0] > 0.99).all() and (similar[50:, 1] > 0.99).all()
    assert similar[:50, 1].max() < 0.5


@pytest.mark.parametrize("objects", [0, 1])
def test_few_objects_and_dimensions_can_be_reduced(objects):
    reduced = reduce_representations(np.ones((2, 3, 4)), np.ones((objects, 2)))
    assert reduced.pixels.shape == (3, 4, 3) and reduced.objects.shape == (objects, 3)
    assert np.isfinite(reduced.pixels).all()
