"""Feature selection for tables: what the ``select`` command does."""

from dgating.tables._csv import write_csv
from dgating.tables._encode import Feature
from dgating.tables._kinds import CATEGORY
from dgating.tables._predictor import Predictor
from dgating.tables._read import Reading, read_table
from dgating.tables._report import PAGE_FILE, REPORT, number, summary, write_report
from dgating.tables._select import Selection, Settings, select

__all__ = [
    "CATEGORY",
    "PAGE_FILE",
    "REPORT",
    "Feature",
    "Predictor",
    "Reading",
    "Selection",
    "Settings",
    "number",
    "read_table",
    "select",
    "summary",
    "write_csv",
    "write_report",
]
