"""A model as a torch.fx graph, and modules with a generated forward."""

from .aliases import Memory
from .arguments import bound, spelled_out
from .attributes import built_in, live_names, plain
from .both_modes import retrace
from .copying import HOOKS, copied
from .dims import (
    argument,
    called,
    gives_pieces,
    is_batch_size,
    is_shape,
    is_size,
    is_unread_part,
    joins_rows,
    keeps_dim,
    keeps_images_apart,
    measured,
    new_shape,
    parts_rows,
    permutation,
    reduced_dims,
    size_of,
    subject,
)
from .keys import Key, joined, key_within
from .lines import at_line
from .new_forward import freeze_attributes, give_forward
from .sharing import foreign_hooks, running_copy, skeleton
from .side_effects import undone
from .trace import barren_modules, learns, trace
from .traced import (
    TRAINING,
    NotTraceable,
    TracedModel,
    defaults,
    is_constant,
    owner,
    trace_in_mode,
)
from .writes import Effects

__all__ = [
    "HOOKS",
    "TRAINING",
    "Effects",
    "Key",
    "Memory",
    "NotTraceable",
    "TracedModel",
    "argument",
    "at_line",
    "barren_modules",
    "bound",
    "built_in",
    "called",
    "copied",
    "defaults",
    "foreign_hooks",
    "freeze_attributes",
    "give_forward",
    "gives_pieces",
    "is_batch_size",
    "is_constant",
    "is_shape",
    "is_size",
    "is_unread_part",
    "joined",
    "joins_rows",
    "keeps_dim",
    "keeps_images_apart",
    "key_within",
    "learns",
    "live_names",
    "measured",
    "new_shape",
    "owner",
    "parts_rows",
    "permutation",
    "plain",
    "reduced_dims",
    "retrace",
    "running_copy",
    "size_of",
    "skeleton",
    "spelled_out",
    "subject",
    "trace",
    "trace_in_mode",
    "undone",
]
