"""Every fact about an operation, in one row.

`known(name)` returns the row of a function, a method or a class of modules. The tracer, aliases,
finding, splitting and frozen networks all read these rows, so teaching an operation to the library
is one row here and one test. `channels/carry.py` implements the words of `Carries`, and
`images_apart.py` those of `Images`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .rule import Carries, Gives, Images, Role, Rule

UNKNOWN = Rule(images=Images.NEVER)


PER_IMAGE = Rule()


DENSE, GROUPED = Rule(Role.DENSE), Rule(Role.GROUPED)


NORM = Rule(Role.NORM, linear=True, carries=Carries.NORM)


BY_BATCH = Rule(refusal="normalises by the batch's own statistics, which skipping images changes")


LINEAR = Rule(Role.CHANNELWISE, linear=True, zero=True)


SAME = replace(LINEAR, carries=Carries.UNCHANGED)


POOL = replace(LINEAR, carries=Carries.AT_FRONT)


POINTWISE = Rule(Role.CHANNELWISE, pointwise=True, carries=Carries.UNCHANGED)


ACTIVATION = replace(POINTWISE, zero=True)


ELEMENTWISE = Rule(carries=Carries.ELEMENTWISE)


PRODUCT = replace(ELEMENTWISE, role=Role.CHANNELWISE)


REDUCTION = Rule(carries=Carries.REDUCED, images=Images.NOT_REDUCED)


AVERAGE = replace(REDUCTION, role=Role.CHANNELWISE, linear=True, zero=True)


LARGEST = replace(REDUCTION, role=Role.CHANNELWISE, zero=True)


OVER_CHANNELS = Rule(carries=Carries.SAME_SHAPE)


SHAPED = replace(LINEAR, shares=True)


PIECES = replace(SHAPED, images=Images.NOT_ALONG, gives=Gives.PIECES)


HALVES = Rule(Role.CHANNELWISE, zero=True, carries=Carries.HALVED, images=Images.NOT_ALONG)


ALONG = replace(PER_IMAGE, images=Images.NOT_ALONG, dim=-1)


ALIAS = replace(UNKNOWN, shares=True)
"""It returns its input's memory; nothing else is known about it."""


def _row(names: str, kind: Rule, **facts: Any) -> tuple[tuple[str, ...], Rule]:
    """Return an operation's spellings, as functions, methods and classes, and its rule."""
    known = replace(kind, **facts)
    spellings = names.split()
    if known.pointwise or known.carries is Carries.ELEMENTWISE:
        spellings += [f"{name}_" for name in spellings if name.islower()]  # in place
    return tuple(spellings), known


_ROWS = (
    # Every value stays where it is.
    _row("Identity", SAME, shares=True),
    _row("identity", ALIAS),
    _row("dropout Dropout", SAME, shares=True),
    _row("drop_path DropPath", SAME, shares=True),
    _row("stochastic_depth StochasticDepth", SAME, shares=True),
    _row("contiguous", SAME, shares=True),
    _row("clone", SAME),
    _row("to type", SAME, shares=True),
    _row("float", SAME, shares=True),
    _row("half", SAME, shares=True),
    _row("double bfloat16", SAME, shares=True),
    _row("neg", SAME),
    # Activations that map zero to zero.
    _row("relu ReLU", ACTIVATION),
    _row("relu6 ReLU6", ACTIVATION),
    _row("leaky_relu LeakyReLU", ACTIVATION),
    _row("PReLU", ACTIVATION, carries=Carries.SLOPES),
    _row("silu SiLU swish Swish SwishMe", ACTIVATION),
    _row("gelu GELU", ACTIVATION),
    _row("quick_gelu QuickGELU", ACTIVATION),
    _row("gelu_tanh GELUTanh", ACTIVATION),
    _row("elu ELU", ACTIVATION),
    _row("celu CELU", ACTIVATION),
    _row("selu SELU", ACTIVATION),
    _row("mish Mish MishMe", ACTIVATION),
    _row("hard_mish HardMish HardMishMe", ACTIVATION),
    _row("hardswish Hardswish hard_swish HardSwish HardswishMe", ACTIVATION),
    _row("tanh Tanh", ACTIVATION),
    _row("softsign Softsign", ACTIVATION),
    _row("hardshrink Hardshrink", ACTIVATION),
    _row("softshrink Softshrink", ACTIVATION),
    _row("tanhshrink Tanhshrink", ACTIVATION),
    _row("abs", ACTIVATION),
    _row("sqrt", ACTIVATION),
    _row("square", ACTIVATION),
    _row("round", ACTIVATION),
    _row("sign", ACTIVATION),
    # Others that treat every value alike.
    _row("sigmoid Sigmoid", POINTWISE),
    _row("hardsigmoid Hardsigmoid hard_sigmoid HardSigmoid HardSigmoidMe", POINTWISE),
    _row("logsigmoid log_sigmoid LogSigmoid", POINTWISE),
    _row("softplus Softplus", POINTWISE),
    _row("hardtanh Hardtanh", POINTWISE),
    _row("clamp clip", POINTWISE),
    _row("exp", POINTWISE),
    _row("log", POINTWISE),
    _row("log1p", POINTWISE),
    _row("rsqrt", POINTWISE),
    _row("reciprocal", POINTWISE),
    _row("erf", POINTWISE),
    _row("cos", POINTWISE),
    _row("sin", POINTWISE),
    # Two values, place by place.
    _row("mul imul multiply", PRODUCT),
    _row("div truediv itruediv", PRODUCT),
    _row("add iadd", ELEMENTWISE),
    _row("sub isub", ELEMENTWISE),
    _row("maximum", ELEMENTWISE),
    _row("minimum", ELEMENTWISE),
    _row("pow", ELEMENTWISE),
    _row("addcmul", ELEMENTWISE),
    _row("lerp", ELEMENTWISE),
    _row("expand_as", ELEMENTWISE, shares=True),
    _row("type_as", ELEMENTWISE, role=Role.CHANNELWISE, linear=True, zero=True, shares=True),
    _row("where", PER_IMAGE, gives=Gives.EITHER),
    _row("gt ge lt le eq ne", PER_IMAGE),
    _row("masked_fill", PER_IMAGE),
    _row("prelu", PER_IMAGE),
    _row("floordiv", PER_IMAGE),
    _row("mod", PER_IMAGE),
    _row("zeros_like", PER_IMAGE),
    _row("ones_like", PER_IMAGE),
    # Positions of maps, whose channels stand in dimension 1.
    _row("dropout1d Dropout1d", POOL, shares=True),
    _row("dropout2d Dropout2d", POOL, shares=True),
    _row("dropout3d Dropout3d", POOL, shares=True),
    _row("avg_pool1d AvgPool1d", POOL),
    _row("avg_pool2d AvgPool2d AvgPool2dSame", POOL),
    _row("avg_pool3d AvgPool3d", POOL),
    _row("BlurPool2d", POOL),
    _row("max_pool1d MaxPool1d", POOL, linear=False),
    _row("max_pool2d MaxPool2d MaxPool2dSame", POOL, linear=False),
    _row("max_pool3d MaxPool3d", POOL, linear=False),
    _row("adaptive_avg_pool1d AdaptiveAvgPool1d", POOL),
    _row("adaptive_avg_pool2d AdaptiveAvgPool2d", POOL),
    _row("adaptive_avg_pool3d AdaptiveAvgPool3d", POOL),
    _row("FastAdaptiveAvgPool2d FastAdaptiveAvgPool", LINEAR),
    _row("adaptive_max_pool1d AdaptiveMaxPool1d", PER_IMAGE, carries=Carries.AT_FRONT),
    _row("adaptive_max_pool2d AdaptiveMaxPool2d", PER_IMAGE, carries=Carries.AT_FRONT),
    _row("adaptive_max_pool3d AdaptiveMaxPool3d", PER_IMAGE, carries=Carries.AT_FRONT),
    _row("ZeroPad1d ZeroPad2d ZeroPad3d", POOL),
    _row("ConstantPad1d ConstantPad2d ConstantPad3d", POOL),
    _row("ReflectionPad1d ReflectionPad2d", POOL),
    _row("ReplicationPad2d", POOL),
    _row("pad", SHAPED, carries=Carries.PADDED, images=Images.NOT_PADDED),
    _row("interpolate Upsample", POOL, shares=True, sized=True),
    _row("UpsamplingNearest2d UpsamplingBilinear2d", POOL, shares=True),
    _row("InstanceNorm1d InstanceNorm2d InstanceNorm3d", PER_IMAGE, carries=Carries.AT_FRONT),
    _row("instance_norm", PER_IMAGE),
    # Norms.
    _row("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm batch_norm", NORM),
    _row("FrozenBatchNorm2d AnyBatchNorm", NORM),
    _row("BatchNormAct2d FrozenBatchNormAct2d SyncBatchNormAct", NORM),
    _row("group_norm GroupNorm GroupNormAct", PER_IMAGE, carries=Carries.GROUPS),
    _row("GroupNorm1 GroupNorm1Act fast_group_norm", OVER_CHANNELS),
    _row("layer_norm LayerNorm LayerNormFp32 fast_layer_norm", OVER_CHANNELS),
    _row("LayerNorm2d LayerNorm2dFp32 LayerNormExp2d", OVER_CHANNELS),
    _row("LayerNormAct LayerNormAct2d", OVER_CHANNELS),
    _row("rms_norm RMSNorm RmsNorm fast_rms_norm", OVER_CHANNELS),
    _row("rms_norm2d RmsNorm2d fast_rms_norm2d", OVER_CHANNELS),
    _row("simple_norm SimpleNorm SimpleNorm2d fast_simple_norm", OVER_CHANNELS),
    _row("LocalResponseNorm", PER_IMAGE),
    _row("normalize", PER_IMAGE, images=Images.NOT_ALONG, dim_at=2, dim=1),
    # Reductions.
    _row("mean", AVERAGE),
    _row("sum", AVERAGE),
    _row("amax", LARGEST),
    _row("amin", LARGEST),
    _row("norm linalg_norm linalg_vector_norm", LARGEST, dim_at=2, keepdim_at=3),
    _row("var", REDUCTION, keepdim_at=3),
    _row("std", REDUCTION, keepdim_at=3),
    _row("logsumexp", REDUCTION),
    _row("max", REDUCTION, gives=Gives.PAIR),
    _row("min", REDUCTION, gives=Gives.PAIR),
    # Operations that mix channels.
    _row("Linear", DENSE),
    _row("linear", PER_IMAGE),
    _row("conv1d conv2d conv3d", PER_IMAGE),
    _row("ConvTranspose1d ConvTranspose2d ConvTranspose3d", PER_IMAGE),
    _row("matmul bmm", PER_IMAGE),
    _row("softmax Softmax", PER_IMAGE, images=Images.NOT_ALONG),
    _row("Softmax2d", PER_IMAGE),
    _row("RadixSoftmax", PER_IMAGE),
    _row("glu GLU", HALVES, dim=-1),
    _row("pixel_shuffle PixelShuffle", PER_IMAGE, shares=True),
    _row("pixel_unshuffle PixelUnshuffle", PER_IMAGE, shares=True),
    _row("channel_shuffle ChannelShuffle", PER_IMAGE, carries=Carries.SHUFFLED, shares=True),
    # Shapes.
    _row("permute", SHAPED, carries=Carries.PERMUTED, images=Images.NOT_MOVED),
    _row(
        "transpose swapaxes swapdims", SHAPED, carries=Carries.TRANSPOSED, images=Images.NOT_SWAPPED
    ),
    _row("flatten", SHAPED, carries=Carries.FLATTENED, images=Images.NOT_JOINED, sized=True),
    _row("Flatten", SHAPED, carries=Carries.FLATTENED, images=Images.NOT_JOINED),
    _row("reshape_as", SHAPED, carries=Carries.UNFLATTENED, images=Images.PARTED),
    _row("view reshape", SHAPED, carries=Carries.VIEWED, images=Images.SIZED, sized=True),
    _row("unflatten", SHAPED, carries=Carries.MOVED, images=Images.NOT_ALONG, sized=True),
    _row("unsqueeze squeeze", SHAPED, carries=Carries.MOVED, images=Images.NOT_ALONG),
    _row("expand", PER_IMAGE, images=Images.EXPANDED, shares=True, sized=True),
    _row("getitem", SHAPED, carries=Carries.TAKEN, images=Images.TAKEN_WHOLE),
    _row("chunk split", PIECES, carries=Carries.PIECES, dim_at=2),
    _row("unbind", PIECES),
    _row("cat concat", LINEAR, carries=Carries.JOINED, images=Images.NOT_ALONG),
    _row("stack", LINEAR, images=Images.NOT_STACKED),
    _row("roll flip", LINEAR, images=Images.NOT_ROLLED),
    _row("cumsum", LINEAR, images=Images.NOT_ALONG),
    _row("repeat", PER_IMAGE, images=Images.REPEATED),
    _row("rearrange", PER_IMAGE, images=Images.PATTERN, shares=True),
    _row("einsum", PER_IMAGE, images=Images.EQUATION, shares=True),
    _row("topk kthvalue", ALONG, dim_at=2, gives=Gives.VALUES),
    _row("sort cummax cummin", ALONG, gives=Gives.VALUES),
    _row("argsort logcumsumexp cumprod", ALONG),
    _row("repeat_interleave", PER_IMAGE, images=Images.NOT_ALONG, dim_at=2),
    # Questions about a value.
    _row("getattr", PER_IMAGE, carries=Carries.TAKEN, images=Images.ASKED, shares=True),
    _row("size dim", PER_IMAGE),
    # Names for memory of which nothing else is known.
    _row(
        "movedim moveaxis t adjoint unfold view_as ravel diagonal narrow select as_strided", ALIAS
    ),
    _row("broadcast_to detach requires_grad_ slice_scatter positive", ALIAS),
    _row("int long bool cpu cuda", ALIAS),
    _row("real imag conj resolve_conj resolve_neg view_as_real view_as_complex", ALIAS),
    _row("atleast_1d atleast_2d atleast_3d upsample", ALIAS),
    _row(
        "alpha_dropout AlphaDropout feature_alpha_dropout FeatureAlphaDropout PatchDropout", ALIAS
    ),
    _row("Unflatten Sequential", ALIAS),
    _row("tensor_split split_with_sizes hsplit vsplit dsplit", ALIAS, gives=Gives.PIECES),
    _row("unsafe_chunk unsafe_split", ALIAS, gives=Gives.PIECES),
    _row("broadcast_tensors meshgrid", ALIAS, gives=Gives.TUPLE),
    # Results of a type that their names do not tell.
    _row(
        "median nanmedian mode aminmax",
        UNKNOWN,
        gives=Gives.EITHER,
    ),
    _row("var_mean std_mean unique nonzero tolist", UNKNOWN, gives=Gives.EITHER),
    _row("multi_head_attention_forward lstm gru rnn_tanh", UNKNOWN, gives=Gives.EITHER),
    _row("max_pool2d_with_indices", UNKNOWN, gives=Gives.EITHER),
)


_BY_NAME = {name: rule for names, rule in _ROWS for name in names}


def known(name: str) -> Rule:
    """Return the rule of the functions, methods or modules of this name."""
    return _BY_NAME.get(name, UNKNOWN)


def teach(name: str, rule: Rule) -> None:
    """Add the row of an operation that somebody else vouches for."""
    _BY_NAME[name] = rule


def spellings(name: str) -> tuple[str, ...]:
    """Return all the names of an operation."""
    return next(names for names, _ in _ROWS if name in names)
