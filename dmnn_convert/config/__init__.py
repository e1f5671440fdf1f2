"""Settings: those of a conversion, options in groups with their checks, and policies' names."""

from .conversion import MOST_SEED, ORDERS, SPLITS, TAIL_NORMS, DynamizeConfig, GateConfig
from .options import UNSET, Options, kind_inside, kind_of, may_be_none, option
from .policies import BUDGET_POLICIES

__all__ = [
    "BUDGET_POLICIES",
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
