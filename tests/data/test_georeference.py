"""Map coordinates of GeoTIFF, checked against numbers that were worked out by hand."""

import numpy as np
import pytest
import tifffile

from rdsnet.data.georeference import read_georeference

PICTURE = np.zeros((40, 60, 3), np.uint8)
UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
SCALE = (33550, "d", 3, (0.5, 0.25, 0.0), True)
TIE = (33922, "d", 6, (10.0, 20.0, 0.0, 400_000.0, 5_000_000.0, 0.0), True)


def keys(directory):
    return (34735, "H", len(directory), directory, True)


def geotiff(path, *tags):
    tifffile.imwrite(path, PICTURE, tile=(16, 16), photometric="rgb", extratags=tags)
    return path


def test_a_tie_point_and_the_size_of_pixels_give_the_transform(tmp_path):
    place = read_georeference(geotiff(tmp_path / "a.tif", SCALE, TIE, keys(UTM)))
    assert place.crs == "urn:ogc:def:crs:EPSG::32633"
    # Pixel (10, 20) is at the tie point; a column is 0.5 m to the east, a row 0.25 m to the south.
    points = place.on_map(np.array([[10, 20], [12, 20], [10, 24], [0, 0]]))
    expected = [[400_000, 5e6], [400_001, 5e6], [400_000, 5e6 - 1], [399_995, 5e6 + 5]]
    assert np.allclose(points, expected)


def test_tie_points_may_be_centres_of_pixels(tmp_path):
    directory = (*UTM[:11], 2, *UTM[12:])
    place = read_georeference(geotiff(tmp_path / "a.tif", SCALE, TIE, keys(directory)))
    assert np.allclose(place.on_map(np.array([[10.5, 20.5]])), [[400_000, 5e6]])


def test_a_matrix_may_turn_the_image(tmp_path):
    matrix = (0.0, 2.0, 0.0, 100.0, 3.0, 0.0, 0.0, 200.0, *[0.0] * 4, 0.0, 0.0, 0.0, 1.0)
    tag = (34264, "d", 16, matrix, True)
    place = read_georeference(geotiff(tmp_path / "a.tif", tag, keys(UTM)))
    assert np.allclose(place.on_map(np.array([[5, 7]])), [[100 + 2 * 7, 200 + 3 * 5]])


def test_degrees_are_longitude_and_latitude(tmp_path):
    directory = (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)
    place = read_georeference(geotiff(tmp_path / "a.tif", SCALE, TIE, keys(directory)))
    assert place.crs == "urn:ogc:def:crs:OGC:1.3:CRS84"


def test_a_system_without_a_number_has_the_name_of_its_citation(tmp_path):
    text = (34737, "s", 0, "Local grid|", True)
    directory = (1, 1, 0, 3, 1024, 0, 1, 1, 1026, 34737, 11, 0, 3072, 0, 1, 32767)
    place = read_georeference(geotiff(tmp_path / "a.tif", SCALE, TIE, keys(directory), text))
    assert place.crs == "Local grid"


def test_the_tags_can_be_written_again(tmp_path):
    text = (34737, "s", 0, "UTM zone 33N|", True)
    first = read_georeference(geotiff(tmp_path / "a.tif", SCALE, TIE, keys(UTM), text))
    assert read_georeference(geotiff(tmp_path / "b.tif", *first.tags)) == first


def test_other_files_have_none(tmp_path):
    assert read_georeference(geotiff(tmp_path / "a.tif")) is None
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert read_georeference(tmp_path / "b.png") is None
    (tmp_path / "c.tif").write_bytes(b"II*\0broken")
    with pytest.raises(ValueError, match="c.tif.* cannot be read.*--coordinates pixels"):
        read_georeference(tmp_path / "c.tif")
