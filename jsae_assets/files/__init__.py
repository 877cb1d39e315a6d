"""The files in the storage folder: where each lies, how it is written whole, how it is read and verified.

    storage.py       paths below the storage folder; a file gets there only when it is complete
    stored.py        reading stored tensors, tables and figures, each compared with the digest that it carries
    estimates.py     the names of tensors and columns that hold estimates
    checkpoints.py   the checkpoints of long steps
    left_over.py     checkpoints that no catalog entry uses any more

Not here: when Dagster stores an asset (`io_managers.py`), which partitions there are (`partitions.py`).
"""
