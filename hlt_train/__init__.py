"""hlt-train: from ROOT files to a low-precision network that runs, bit for bit, in a High-Level Trigger.

The verbs are one file each (`fit`, `distil`, `export`, `evaluate`, `predict`, `inspect`); the command line over them lives in `hlt_train.cli`.
Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
