"""The vocabulary for facts about an operation: a rule, and the values of its fields."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.Enum):
    """The way in which an operation treats channels."""

    DENSE = "mixes channels"
    GROUPED = "keeps groups of channels apart"
    CHANNELWISE = "keeps channels apart"
    NORM = "normalises each channel"
    OTHER = "unknown"


class Carries(enum.Enum):
    """Where the channels of an operation's output come from."""

    UNCHANGED = "every value stands where it stood"
    ELEMENTWISE = "from what stands at the same place of its inputs, with broadcasting"
    AT_FRONT = "it works on positions; channels stand in dimension 1"
    NORM = "it normalises each channel of dimension 1, or of vectors"
    GROUPS = "whole groups of dimension 1 stay apart"
    SLOPES = "one slope, or one a channel of dimension 1"
    REDUCED = "it reduces the dimensions that it names"
    PADDED = "it pads the last dimensions"
    PERMUTED = "it orders all dimensions"
    TRANSPOSED = "it swaps two dimensions"
    FLATTENED = "it joins dimensions"
    UNFLATTENED = "it parts rows that were joined"
    VIEWED = "it asks for a shape"
    TAKEN = "it takes a part by index"
    PIECES = "each of its pieces is a run of channels"
    JOINED = "its inputs' channels, one after the other"
    SHUFFLED = "one channel of each group in turn"
    HALVED = "channel c is made of the channels c of both halves"
    SAME_SHAPE = "it normalises over channels, and keeps the shape"
    MOVED = "it moves channels about, in a way that is not followed"
    NOTHING = "it mixes channels, or that is not known"


KEEPING_CHANNELS = frozenset(
    (
        *(Carries.UNCHANGED, Carries.ELEMENTWISE, Carries.AT_FRONT),
        *(Carries.NORM, Carries.GROUPS, Carries.SLOPES),
    )
)
"""Output and input have the same channels at the same place."""


KEEPING_RANK = KEEPING_CHANNELS | {
    *(Carries.TRANSPOSED, Carries.PADDED, Carries.HALVED, Carries.SAME_SHAPE),
    Carries.SHUFFLED,
}
"""Output and input have equally many dimensions."""


MOVING = frozenset(
    (
        *(Carries.PERMUTED, Carries.TRANSPOSED, Carries.FLATTENED, Carries.VIEWED),
        *(Carries.TAKEN, Carries.MOVED),
    )
)
"""Channels may stand in another dimension afterwards."""


CARRYING = frozenset(Carries) - {Carries.SAME_SHAPE, Carries.MOVED, Carries.NOTHING}
"""Channels can be followed through, with the right arguments."""


class Images(enum.Enum):
    """When an operation leaves the first dimension, the batch, alone."""

    ALWAYS = "always"
    NEVER = "never, or that is not known"
    NOT_REDUCED = "if the dimensions that it reduces are others"
    NOT_ALONG = "if the dimension that it works along is another"
    NOT_MOVED = "if the first dimension stays first"
    NOT_SWAPPED = "if the two that it swaps are others"
    NOT_ROLLED = "if the dimensions that it rolls or flips are others"
    NOT_PADDED = "if the dimensions that it pads are others"
    NOT_STACKED = "if it stacks along another, or the stack is summed again"
    NOT_JOINED = "if the first dimension is joined to no other, or parted again"
    PARTED = "if it parts the rows that were joined"
    SIZED = "if the shape begins with the size of the batch"
    REPEATED = "if each image is there once afterwards, at its place"
    EQUATION = "if its equation has the first index of everything that is computed in common"
    PATTERN = "if its pattern begins with the same axis before and after"
    EXPANDED = "if the first size stays as it is"
    TAKEN_WHOLE = "if all images are taken, or a part of a tuple"
    ASKED = "if it asks for a size, a dtype or the like, or for a part of a tuple"


class Gives(enum.Enum):
    """The type of an operation's result."""

    TENSOR = "a tensor"
    PIECES = "a tuple of pieces that share no memory with each other"
    TUPLE = "a tuple of tensors"
    PAIR = "a tuple of values and indices if it is told a dimension, else perhaps a tensor"
    VALUES = "a tuple of values and indices"
    EITHER = "not to be told by its name"


@dataclass(frozen=True)
class Rule:
    """All that is known of one operation.

    Whether it writes into its input needs no entry: PyTorch marks that in the name (``relu_``,
    ``+=``) or with `inplace`, for every operation alike.

    Attributes:
        role: how it treats channels.
        linear: it may be shared out over a sum.
        zero: it maps zeros to zeros.
        pointwise: it treats every value alike, wherever it stands.
        carries: where its output's channels come from.
        images: when it treats every image by itself, so that images may be left out.
        shares: its result may be its input's memory.
        gives: the type of its result.
        sized: it may read the size of a batch without becoming a function of it.
        dim_at: position of the argument that names dimensions.
        dim: the dimension if none is named.
        keepdim_at: position of the argument `keepdim`.
        refusal: why no block may hold it at all.
    """

    role: Role = Role.OTHER
    linear: bool = False
    zero: bool = False
    pointwise: bool = False
    carries: Carries = Carries.NOTHING
    images: Images = Images.ALWAYS
    shares: bool = False
    gives: Gives = Gives.TENSOR
    sized: bool = False
    dim_at: int = 1
    dim: int | None = 0
    keepdim_at: int = 2
    refusal: str = ""

    @property
    def per_image(self) -> bool:
        """Whether it treats every image by itself, if its arguments are right for that."""
        return self.images is not Images.NEVER
