"""Detectron2's checkpointer, made safe against interruptions, full disks and foreign files."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler, PathManager
from fvcore.common import checkpoint as fvcore_checkpoint

from rdsnet.checkpoint.atomic import remove_unfinished, write_atomically
from rdsnet.checkpoint.files import read_checkpoint
from rdsnet.checkpoint.pretrained import load_pretrained
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.checkpoint.stems import with_channels_of
from rdsnet.modeling.backbones.timm_fpn import PRETRAINED

logger = logging.getLogger(__name__)

_OF_A_RUN = re.compile(r"model_(\d+|final)\.pth")


class _SafeReader(fvcore_checkpoint.Checkpointer):
    """Stands behind DetectionCheckpointer, where that has files read that are not .pkl."""

    trust = False

    def _load_file(self, f: str) -> dict:
        return read_checkpoint(f, self.trust)


class Checkpointer(DetectionCheckpointer, _SafeReader):
    """Reads and writes what :class:`detectron2.checkpoint.DetectionCheckpointer` does.

    The differences:

    - A checkpoint is written under a temporary name and renamed when it is on the disk. A process
      killed at any moment leaves the previous one; a full disk is an OSError that says so.
    - Where ``last_checkpoint`` is missing or damaged, or names a damaged file, the newest intact
      checkpoint of the folder is the last.
    - Nothing in a file is run: see :func:`rdsnet.checkpoint.files.read_checkpoint`.
    - Weights that cannot be downloaded are an OSError that says what to do.

    Args:
        model, save_dir, save_to_disk, checkpointables: as in Detectron2.
        trust: read files with arbitrary Python objects, and run the code in them.
    """

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, trust: bool = False, **kwargs
    ) -> None:
        super().__init__(model, str(save_dir), **kwargs)
        self.trust = trust

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """As in Detectron2, with downloads checked first, ``timm://``, and models in the box.

        Raises:
            OSError: ``path`` is an address that cannot be reached.
            FileNotFoundError, ValueError: see :func:`rdsnet.checkpoint.files.read_checkpoint`,
                :func:`rdsnet.checkpoint.shipped.weights_file` and
                :func:`rdsnet.checkpoint.pretrained.load_pretrained`.
        """
        path = weights_file(path)
        if path.startswith(PRETRAINED):
            self.logger.info(load_pretrained(self.model, path))
            return {}
        if "://" in path:
            _download(path)
        return super().load(path, checkpointables)

    def read(self, path: str) -> dict:
        """The content of a file of weights: ``"model"`` {name: tensor}, and what else it holds.

        With an entry ``"matching_heuristics"`` the names are those of another library.

        Raises:
            FileNotFoundError, ValueError: as :meth:`load`.
        """
        content = self._load_file(path)
        self._convert_ndarray_to_tensor(content["model"])
        fvcore_checkpoint._strip_prefix_if_present(content["model"], "module.")
        return content

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth into the folder, with model, checkpointables and ``kwargs``.

        Raises:
            OSError: it cannot be written. The previous checkpoint is intact.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:  # not a file system: as Detectron2 does it
            super().save(name, **kwargs)
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        remove_unfinished(self.save_dir)
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the last checkpoint into the file ``last_checkpoint``."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        name = last_filename_basename.encode()
        write_atomically(Path(self.save_dir) / "last_checkpoint", lambda file: file.write(name))

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """See :func:`last_checkpoint`; of an address what Detectron2 finds there."""
        if "://" in self.save_dir:
            return super().get_checkpoint_file() if super().has_checkpoint() else ""
        return last_checkpoint(self.save_dir)

    def _load_model(self, checkpoint: dict) -> object:
        if checkpoint.get("matching_heuristics"):  # another library's, where a training starts
            self._convert_ndarray_to_tensor(checkpoint["model"])
            weights, changed = with_channels_of(self.model, checkpoint["model"])
            checkpoint["model"] = weights
            if changed:
                self.logger.info(f"Pretrained weights: {changed}")
        return super()._load_model(checkpoint)

    def _load_file(self, filename: str) -> dict:
        if not filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        content = read_checkpoint(filename, self.trust)
        if not isinstance(content, dict):
            raise ValueError(
                f"'{filename}' holds no weights: expected a dictionary, found {type(content)}"
            )
        if "model_state" in content:  # pycls
            weights = content["model_state"]
            weights = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        if "model" in content and "__author__" in content:  # Detectron2's model zoo
            self.logger.info(f"Reading a file from '{content['__author__']}'")
            return content
        # Caffe2: detectors keep their weights in "blobs", ImageNet models are the dictionary.
        blobs = content.get("blobs", content)
        weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def last_checkpoint(folder: str | Path) -> str:
    """The last intact checkpoint of a folder; "" when there is none at all.

    Raises:
        ValueError: there are checkpoints, and every one of them is damaged.
    """
    folder = Path(folder)
    named = _named_last(folder)
    others = [path for path in folder.glob("model_*.pth") if _OF_A_RUN.fullmatch(path.name)]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    candidates = [path for path in dict.fromkeys([named, *others]) if path is not None]
    for path in candidates:
        if path.is_file() and is_intact(path):
            if path != named:
                logger.warning(
                    f"{folder / 'last_checkpoint'} does not name an intact checkpoint; the "
                    f"newest intact one in the folder is {path.name}"
                )
            return str(path)
    if others:
        damaged = ", ".join(path.name for path in others)
        raise ValueError(
            f"no checkpoint in {folder} can be read, all are damaged ({damaged}). Remove them "
            "to start anew, or put an intact one there."
        )
    return ""


def _named_last(folder: Path) -> Path | None:
    """The path that ``last_checkpoint`` in the folder names."""
    try:
        name = (folder / "last_checkpoint").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    is_name = name and name == os.path.basename(name) and "\0" not in name
    return folder / name if is_name else None


def _download(address: str) -> None:
    """Bring weights into Detectron2's cache on this machine, if they are not there."""
    try:
        PathManager.get_local_path(address)
    except OSError as error:
        source = address
        if address.startswith(Detectron2Handler.PREFIX):
            name = address.removeprefix(Detectron2Handler.PREFIX)
            source = Detectron2Handler.S3_DETECTRON2_PREFIX + name
        raise OSError(
            f"the weights '{address}' cannot be downloaded: {error}. Without a connection, get "
            f"{source} on another machine and give the file with MODEL.WEIGHTS FILE. "
            "MODEL.WEIGHTS '' starts from random weights, which takes far more images and "
            "iterations; the small model (--config small) is made for that."
        ) from error


def is_intact(path: Path) -> bool:
    """Whether every byte is as torch.save wrote it (a zip file with a checksum per tensor)."""
    stat = path.stat()
    return _has_right_checksums(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _has_right_checksums(path: str, _changed: int, _size: int) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError):
        return False
