"""The data sets of the experiments: found in a folder or fetched from their homes, checked, read as numpy arrays."""

from experiments.data._dataset import Dataset, Text, split, standardised
from experiments.data._files import DataDamaged, DataMissing, File, find
from experiments.data._sets import load, names, require

__all__ = [
    "DataDamaged",
    "DataMissing",
    "Dataset",
    "File",
    "Text",
    "find",
    "load",
    "names",
    "require",
    "split",
    "standardised",
]
