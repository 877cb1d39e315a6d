"""Where a pretrained pair comes from: a directory in the published format. (wandb artifacts arrive with their issue.)

Here: finding the files and saying what they are. Not here: what is inside them (`sae_pair.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def directory_digest(directory: str | Path) -> str:
    """sha256 over names and contents of a directory's files, in hexadecimal: which artifact this is, wherever it lies.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is no directory; expected a published pair's sae_weights.safetensors and cfg.json"
        )
    digest = hashlib.sha256()
    for path in sorted(root.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
