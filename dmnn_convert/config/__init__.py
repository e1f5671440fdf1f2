"""Settings: those of a conversion, and options in groups with their checks."""

from .conversion import MOST_SEED, ORDERS, SPLITS, TAIL_NORMS, DynamizeConfig, GateConfig
from .options import UNSET, Options, kind_inside, kind_of, may_be_none, option

__all__ = [
    "MOST_SEED",
    "ORDERS",
    "SPLITS",
    "TAIL_NORMS",
    "UNSET",
    "DynamizeConfig",
    "GateConfig",
    "Options",
    "kind_inside",
    "kind_of",
    "may_be_none",
    "option",
]
