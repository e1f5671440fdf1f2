"""A model as a torch.fx graph, and modules with a generated forward."""

from .aliases import Memory
from .arguments import bound, spelled_out
from .attributes import TAKEN, live_names, plain, with_plain_numbers
from .both_modes import retrace
from .copying import copied
from .dims import (
    argument,
    called,
    gives_pair,
    gives_tuple,
    is_batch_size,
    is_shape,
    is_size,
    is_unread_part,
    joins_rows,
    keeps_dim,
    measured,
    new_shape,
    parts_rows,
    permutation,
    reduced_dims,
    size_of,
    subject,
)
from .exchange import keeping_methods
from .functional import is_layer_function, weight_read
from .held_values import TENSOR, OuterValue, Unguarded
from .images_apart import is_apart, keeps_images_apart
from .keys import Key, below, joined, key_within, within
from .libraries import FUNCTION_HOMES, is_library_layer
from .lines import at_line, defined_at, located, users_line
from .modes import depends_on_mode, let_each_read_its_own, with_a_mode_of_its_own
from .new_forward import freeze_attributes, give_forward, guard_saving
from .operations import (
    BY_BATCH,
    DENSE,
    GROUPED,
    PER_IMAGE,
    UNKNOWN,
    known,
    spellings,
)
from .outer import built_in, holds_alone, outer_values, tensors_mentioned
from .own_layers import made_weight, own_layer
from .randomness import own_streams
from .rule import CARRYING, KEEPING_CHANNELS, KEEPING_RANK, MOVING, Carries, Images, Role, Rule
from .side_effects import undone
from .sizes import check_sizes
from .skeletons import foreign_hooks, running_copy, skeleton
from .trace import learns, trace, untraced_modules
from .traced import (
    TRAINING,
    NotTraceable,
    TracedModel,
    defaults,
    is_constant,
    owner,
    trace_in_mode,
)
from .vouching import register_operation, vouched
from .writes import Effects, is_of_library

__all__ = [
    "BY_BATCH",
    "CARRYING",
    "DENSE",
    "FUNCTION_HOMES",
    "GROUPED",
    "KEEPING_CHANNELS",
    "KEEPING_RANK",
    "MOVING",
    "PER_IMAGE",
    "TAKEN",
    "TENSOR",
    "TRAINING",
    "UNKNOWN",
    "Carries",
    "Effects",
    "Images",
    "Key",
    "Memory",
    "NotTraceable",
    "OuterValue",
    "Role",
    "Rule",
    "TracedModel",
    "Unguarded",
    "argument",
    "at_line",
    "below",
    "bound",
    "built_in",
    "called",
    "check_sizes",
    "copied",
    "defaults",
    "defined_at",
    "depends_on_mode",
    "foreign_hooks",
    "freeze_attributes",
    "give_forward",
    "gives_pair",
    "gives_tuple",
    "guard_saving",
    "holds_alone",
    "is_apart",
    "is_batch_size",
    "is_constant",
    "is_layer_function",
    "is_library_layer",
    "is_of_library",
    "is_shape",
    "is_size",
    "is_unread_part",
    "joined",
    "joins_rows",
    "keeping_methods",
    "keeps_dim",
    "keeps_images_apart",
    "key_within",
    "known",
    "learns",
    "let_each_read_its_own",
    "live_names",
    "located",
    "made_weight",
    "measured",
    "new_shape",
    "outer_values",
    "own_layer",
    "own_streams",
    "owner",
    "parts_rows",
    "permutation",
    "plain",
    "reduced_dims",
    "register_operation",
    "retrace",
    "running_copy",
    "size_of",
    "skeleton",
    "spelled_out",
    "spellings",
    "subject",
    "tensors_mentioned",
    "trace",
    "trace_in_mode",
    "undone",
    "untraced_modules",
    "users_line",
    "vouched",
    "weight_read",
    "with_a_mode_of_its_own",
    "with_plain_numbers",
    "within",
]
