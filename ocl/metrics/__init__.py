"""Judges: segmentation scores under named protocols. Every number is printed with the protocol that made it."""

from ocl.metrics.contingency import Contingency, relabel, tabulate
from ocl.metrics.protocols import PROTOCOLS, Protocol, protocol_named
from ocl.metrics.scores import segmentation_scores
from ocl.metrics.segmentation import Segmentation

__all__ = [
    "PROTOCOLS",
    "Contingency",
    "Protocol",
    "Segmentation",
    "protocol_named",
    "relabel",
    "segmentation_scores",
    "tabulate",
]
