"""The language model that ships with this package: its files lie in this folder. A model trained anew gets a new name,
so that what was measured on the old one is not taken for it."""

from pathlib import Path

FOLDER = Path(__file__).parent
