"""A folder of shards: what is missing, what is tried again, what is refused."""

import json
import os

import numpy as np
import pytest
from helpers.folders import contents

pytest.importorskip("pyarrow", reason="needs rdsnet[ray]")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet  # noqa: E402

from rdsnet.prediction.listing import listed_inputs  # noqa: E402
from rdsnet.prediction.shards import Shards  # noqa: E402

INPUTS = [(f"{k:02d}.png", 100 + k) for k in range(7)]
SETTINGS = {"--weights": "abc", "--score-threshold": (0.5, 0.25)}


class Fake:
    """Stands for a RayPredictor: two rows per file; ``bad`` ones fail."""

    def __init__(self, *bad):
        self.bad, self.seen = bad, []

    def __call__(self, batch):
        rows = []
        for path, number in zip(batch["path"], batch["input"].tolist()):
            name = os.fsdecode(path)
            self.seen.append(name)
            for half in (0, 1):
                boxes = [[float(number), half, 2.0, 3.0]] * half
                error = "broken" if name in self.bad and half else None
                rows.append({"path": name, "boxes": boxes, "error": error, "input": number})
        boxes = pa.list_(pa.list_(pa.float32(), 4))
        fields = {"path": pa.string(), "boxes": boxes, "error": pa.string(), "input": pa.int64()}
        return pa.Table.from_pylist(rows, pa.schema(fields))


def begun(folder, inputs=INPUTS, settings=SETTINGS, size=3):
    shards = Shards(folder)
    shards.begin(settings, inputs, size)
    return shards


def test_shards_are_there_or_missing(tmp_path):
    shards, fake = begun(tmp_path / "a"), Fake()
    assert len(shards) == 3 and shards.missing() == [0, 1, 2]
    shards.complete(1, fake)
    assert fake.seen == ["03.png", "04.png", "05.png"] and shards.missing() == [0, 2]
    again = begun(tmp_path / "a")
    assert again.missing() == [0, 2]
    for shard in again.missing():
        again.complete(shard, fake)
    assert again.missing() == [] and again.inputs(2) == ["06.png"] and again.first(2) == 6
    assert again.read(2)["input"].to_pylist() == [6, 6]
    again.complete(0, fake)
    assert len(fake.seen) == 7  # what is done is not done again


def test_the_order_of_the_shards_does_not_matter(tmp_path):
    order = np.random.default_rng().permutation(3).tolist()
    for name, numbers in {"a": [0, 1, 2], "b": order}.items():
        shards = begun(tmp_path / name)
        for shard in numbers:
            shards.complete(shard, Fake())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_failed_is_tried_again_alone(tmp_path):
    shards = begun(tmp_path / "a")
    for shard in range(3):
        shards.complete(shard, Fake("01.png", "06.png"))
    assert shards.missing() == [] and shards.missing(retry_failed=True) == [0, 2]
    healed = Fake()
    for shard in shards.missing(retry_failed=True):
        shards.complete(shard, healed, retry_failed=True)
    assert healed.seen == ["01.png", "06.png"]
    straight = begun(tmp_path / "b")
    for shard in range(3):
        straight.complete(shard, Fake())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_file_of_another_size_is_predicted_again(tmp_path):
    shards = begun(tmp_path)
    for shard in range(3):
        shards.complete(shard, Fake())
    changed = [(name, size + (name == "04.png")) for name, size in INPUTS]
    assert begun(tmp_path, changed).missing() == [1]


@pytest.mark.parametrize(
    ("inputs", "was", "is_"),
    [
        (INPUTS[:5] + [("x.png", 1)] + INPUTS[6:], "05.png", "x.png"),
        (INPUTS[:-1], "06.png", ""),
        (INPUTS + [("x.png", 1)], "", "x.png"),
        (INPUTS + [(f"x{k}.png", 1) for k in range(5)], "", "x0.png"),
    ],
)
def test_other_files_are_refused(inputs, was, is_, tmp_path):
    shards = begun(tmp_path)
    shards.complete(0, Fake())
    with pytest.raises(ValueError, match=f"other files: .*'{is_}' now, it had '{was}'"):
        begun(tmp_path, inputs)
    assert begun(tmp_path).missing() == [1, 2]


def test_other_settings_are_refused(tmp_path):
    begun(tmp_path)
    for name, value in {"--weights": "abd", "--score-threshold": (0.5,), "--tile": 512}.items():
        with pytest.raises(ValueError, match=f"another run: {name} was .*Take another --output"):
            begun(tmp_path, settings=SETTINGS | {name: value})
    with pytest.raises(ValueError, match="--shard-size was 3 and is 4"):
        begun(tmp_path, size=4)
    begun(tmp_path)


def test_shards_without_their_settings_are_refused(tmp_path):
    begun(tmp_path).complete(0, Fake())
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="run.json, which says by which model, is missing"):
        begun(tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    begun(tmp_path)
    for left in ("shards/000001.ab.new", "shards/000001.ab.new.tmp", "inputs.new", "run.json.tmp"):
        (tmp_path / left).write_bytes(b"PAR1")
    assert begun(tmp_path).missing() == [0, 1, 2]
    assert set(contents(tmp_path)) == {"run.json", "inputs.parquet"}


def test_a_damaged_shard_is_named(tmp_path):
    shards = begun(tmp_path)
    (tmp_path / "shards/000001.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"000001.parquet' is damaged .*delete it"):
        shards.missing(retry_failed=True)


def test_names_that_are_no_text_are_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.png")
    assert begun(tmp_path, [(name, None)]).inputs(0) == [name]


# ------------------------------------------------------------------------------- what is listed


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (folder / name).write_bytes(b"12345")
    return folder


def test_folders_and_files_are_listed_as_always(photos):
    listed, sources, left_out = listed_inputs([str(photos), str(photos / "b.png")])
    expected = [(str(photos / "a.JPG"), 5), (str(photos / "b.png"), 5)]
    assert list(listed) == expected and [str(s.path) for s in sources] == [p for p, _ in expected]
    assert left_out.startswith("1 other file")


def test_addresses_are_listed(photos):
    at = f"file://{photos}"
    listed, sources, _ = listed_inputs([f"{at}/b.png", f"{at}/"])
    assert list(listed) == [(f"{at}/b.png", 5), (f"{at}/a.JPG", 5)] and not sources
    with pytest.raises(FileNotFoundError, match="file:///lost' does not exist"):
        listed_inputs(["file:///lost"])
    with pytest.raises(ValueError, match="no address that pyarrow can open"):
        listed_inputs(["gopher://lost/a.png"])


def test_paths_in_a_table_keep_their_order(tmp_path):
    paths = ["z.png", "a.png", "s3://bucket/b.png", "z.png"]
    pa.parquet.write_table(pa.table({"path": paths, "id": range(4)}), tmp_path / "list.parquet")
    for word in (str(tmp_path / "list.parquet"), f"file://{tmp_path}/list.parquet"):
        assert list(listed_inputs([word])[0]) == [(path, None) for path in paths]


def test_tables_without_paths_are_refused(tmp_path):
    file = str(tmp_path / "list.parquet")
    with pytest.raises(FileNotFoundError, match=r"list.parquet' does not exist"):
        listed_inputs([file])
    pa.parquet.write_table(pa.table({"uri": ["a.png"], "id": [1]}), file)
    with pytest.raises(ValueError, match="no column 'path'; it has: uri, id"):
        listed_inputs([file])
    pa.parquet.write_table(pa.table({"path": ["a.png", None]}), file)
    with pytest.raises(ValueError, match="row without a path"):
        list(listed_inputs([file])[0])
    (tmp_path / "list.parquet").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is no parquet file"):
        listed_inputs([file])


def test_cameras_are_refused():
    with pytest.raises(ValueError, match="a camera needs --engine local"):
        listed_inputs(["0"])
