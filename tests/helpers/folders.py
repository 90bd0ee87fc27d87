"""What a folder holds."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
