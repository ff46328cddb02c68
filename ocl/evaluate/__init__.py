"""What a trained model is worth: object discovery beside trivial baselines, segmented photographs, reports."""

from ocl.evaluate.baselines import BASELINES
from ocl.evaluate.curves import Curve, read_curves
from ocl.evaluate.discovery import Discovery, evaluate, score_baselines
from ocl.evaluate.report import Picture, environment, write_report
from ocl.evaluate.segment import segment
from ocl.evaluate.tables import Table, print_tables, score_tables

__all__ = [
    "BASELINES",
    "Curve",
    "Discovery",
    "Picture",
    "Table",
    "environment",
    "evaluate",
    "print_tables",
    "read_curves",
    "score_baselines",
    "score_tables",
    "segment",
    "write_report",
]
