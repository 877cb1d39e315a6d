"""The language model that ships with this package; its files lie in this folder. A retrained model must get a new name,
so that measurements of the old model are not taken for those of the new one."""

from pathlib import Path

FOLDER = Path(__file__).parent
