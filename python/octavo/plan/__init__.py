"""From what the user may choose to what will be done: resolve() makes the Plan. Needs no torch."""

from octavo.plan.footprint import CapacityRow, Footprint, capacity_table, format_bytes
from octavo.plan.resolver import Plan, Reason, footprint_of, resolve

__all__ = [
    "CapacityRow",
    "Footprint",
    "Plan",
    "Reason",
    "capacity_table",
    "footprint_of",
    "format_bytes",
    "resolve",
]
