"""Small networks of one block each, for every block type and attention.

Widths are chosen so that a wrong slice shows: ten channels outside, fourteen inside, and neither
two nor three sub-blocks share them out without a rest somewhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from nets import Residual, Written, conv_norm, randomised
from timm.layers import (
    BatchNormAct2d,
    BlurPool2d,
    EcaModule,
    EffectiveSEModule,
    GluMlp,
    GroupNormAct,
    LayerNorm2d,
    ScaledStdConv2d,
    StdConv2d,
    SwiGLU,
)
from timm.layers.cbam import LightCbamModule
from timm.layers.grn import GlobalResponseNorm
from torch import nn

OUT, HIDDEN, NARROW = 10, 14, 4


def randomised_throughout(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms of every kind values of their own, in place; evaluation."""
    randomised(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | GlobalResponseNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
    return model.eval()


def residual(hidden: nn.Module, width: int = HIDDEN, **more) -> nn.Module:
    """x + consumer(hidden(relu(producer(x))))."""
    p, q = conv_norm(OUT, width), conv_norm(width, OUT)
    return Written(lambda m, x: x + m.q(m.hidden(m.p(x).relu())), p=p, q=q, hidden=hidden, **more)


def on_output(tail: nn.Module) -> nn.Module:
    """x + tail(branch(x))."""
    p, q = conv_norm(OUT, HIDDEN), conv_norm(HIDDEN, OUT)
    return Written(lambda m, x: x + m.tail(m.q(m.p(x).relu())), p=p, q=q, tail=tail)


def hidden(written, width: int = HIDDEN, **members) -> nn.Module:
    return residual(Written(written, **members), width)


# --- whole networks, and parts of no type -----------------------------------------------------


def net(*blocks: nn.Module) -> nn.Module:
    """A stem and these blocks, their norms with values of their own."""
    return randomised_throughout(nn.Sequential(conv_norm(3, OUT), *blocks))


def basic() -> nn.Module:
    return Residual(nn.Sequential(*conv_norm(OUT, HIDDEN), nn.ReLU(), *conv_norm(HIDDEN, OUT)))


def squeezed_context(m, x):
    """A sum of a map and one value a channel, which only shapes show."""
    weights = m.mask(x).flatten(2).softmax(-1)
    pooled = torch.matmul(x.flatten(2), weights.transpose(1, 2)).unsqueeze(-1)
    return x + m.up(F.relu(m.down(pooled)))


def around(written, **more) -> nn.Module:
    """The forward, with layers `down` and `up` as in squeeze-excite."""
    return Written(written, down=nn.Conv2d(OUT, 4, 1), up=nn.Conv2d(4, OUT, 1), **more)


# --- attention over the hidden channels -------------------------------------------------------


def excite(dims: int = 2) -> dict[str, nn.Module]:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return {"down": conv(HIDDEN, NARROW, 1), "up": conv(NARROW, HIDDEN, 1)}


def se_mean() -> nn.Module:
    return hidden(
        lambda m, h: h * torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3), keepdim=True))))),
        **excite(),
    )


def viewed(m, h):
    b, c, _, _ = h.size()
    return m.fc(m.pool(h).view(b, c)).view(b, c, 1, 1)


def se_linear(written) -> nn.Module:
    fc = nn.Sequential(
        *(nn.Linear(HIDDEN, NARROW, bias=False), nn.ReLU(inplace=True)),
        *(nn.Linear(NARROW, HIDDEN, bias=False), nn.Sigmoid()),
    )
    return hidden(written, fc=fc, pool=nn.AdaptiveAvgPool2d(1))


def se_functional() -> nn.Module:
    return hidden(
        lambda m, h: F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(h, 1))))) * h,
        **excite(),
    )


def gather_excite() -> nn.Module:
    """Gather-excite without parameters, over neighbourhoods of four by four."""
    return hidden(lambda m, h: h * torch.sigmoid(F.interpolate(F.avg_pool2d(h, 4), scale_factor=4)))


def grn_channels_last() -> nn.Module:
    return Written(
        lambda m, x: x + m.q(m.grn(F.gelu(m.p(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2),
        p=nn.Linear(OUT, HIDDEN),
        q=nn.Linear(HIDDEN, OUT),
        grn=GlobalResponseNorm(HIDDEN),
    )


# --- tokens and gated linear units ------------------------------------------------------------


def tokens(branch: nn.Module) -> nn.Module:
    """The branch reads (B, positions, channels)."""
    return nn.Sequential(
        Written(lambda m, x: x.flatten(2).transpose(1, 2)), Residual(branch), nn.LayerNorm(OUT)
    )


def mlp(*inside: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(OUT, HIDDEN), *inside, nn.Linear(HIDDEN, OUT))


def vectors(branch: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Residual(branch))


class MapMlp(nn.Module):
    """An MLP of tokens whose hidden channels become a map for a depthwise convolution."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.fc1, self.fc2 = nn.Linear(OUT, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.dw = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)

    def forward(self, x):
        x = self.fc1(x)
        b, _, c = x.shape
        x = self.dw(x.transpose(1, 2).view(b, c, self.side, self.side))
        return self.fc2(F.gelu(x.flatten(2).transpose(1, 2)))


def channels_last_residual() -> nn.Module:
    return nn.Sequential(
        Written(lambda m, x: x.permute(0, 2, 3, 1)),
        Residual(nn.Sequential(nn.LayerNorm(OUT), mlp(nn.GELU()))),
        Written(lambda m, x: x.permute(0, 3, 1, 2)),
    )


def glu() -> nn.Module:
    def written(m, x):
        a, b = m.p(x).chunk(2, 1)
        return x + m.q(a * torch.sigmoid(b))

    return Written(written, p=conv_norm(OUT, 2 * HIDDEN), q=conv_norm(HIDDEN, OUT))


# --- several producers, several consumers -----------------------------------------------------


def ghost() -> nn.Module:
    def written(m, x):
        first = m.primary(x).relu()
        return x + m.q(torch.cat([first, m.cheap(first).relu()], 1))

    half = HIDDEN // 2
    return Written(
        written,
        primary=conv_norm(OUT, half, 1),
        cheap=conv_norm(half, half, groups=half),
        q=conv_norm(HIDDEN, OUT, 1),
    )


def two_producers() -> nn.Module:
    return Written(
        lambda m, x: x + m.q(torch.cat([m.a(x), m.b(x)], 1).relu()),
        a=conv_norm(OUT, 6),
        b=conv_norm(OUT, 9, 1),
        q=conv_norm(15, OUT),
    )


def res2net() -> nn.Module:
    def written(m, x):
        a, b, c = m.p(x).relu().chunk(3, 1)
        b = m.b(b).relu()
        c = m.c(b + c).relu()
        return x + m.q(torch.cat([a, b, c], 1))

    return Written(
        written,
        p=conv_norm(OUT, 12, 1),
        q=conv_norm(12, OUT, 1),
        b=conv_norm(4, 4),
        c=conv_norm(4, 4),
    )


def grouped_sum() -> nn.Module:
    """Two grouped paths with unlike groups meet in a sum."""
    return hidden(
        lambda m, h: m.a(h) + m.b(h),
        12,
        a=nn.Conv2d(12, 12, 3, padding=1, groups=6),
        b=nn.Conv2d(12, 12, 3, padding=1, groups=3),
    )


def two_consumers() -> nn.Module:
    """Two paths of unlike widths, summed before one norm."""
    widths = {"a": (6, 1), "b": (9, 3)}
    paths = {
        name: nn.Sequential(
            *(*conv_norm(OUT, width, kernel), nn.ReLU(), nn.Conv2d(width, OUT, 1, bias=False))
        )
        for name, (width, kernel) in widths.items()
    }
    return Written(lambda m, x: x + m.norm(m.a(x) + m.b(x)), norm=nn.BatchNorm2d(OUT), **paths)


def repvgg() -> nn.Module:
    """Three paths meet and nothing is hidden between: input channels are shared out."""
    return Written(
        lambda m, x: (m.a(x) + m.b(x) + m.c(x)).relu(),
        a=conv_norm(OUT, OUT),
        b=conv_norm(OUT, OUT, 1),
        c=nn.BatchNorm2d(OUT),
    )


# --- convolutions of all kinds ----------------------------------------------------------------


def standardised(conv: type[nn.Conv2d]) -> nn.Module:
    return Residual(
        nn.Sequential(
            *(nn.BatchNorm2d(OUT), nn.ReLU(), conv(OUT, HIDDEN, 3, padding=1)),
            *(nn.BatchNorm2d(HIDDEN), nn.ReLU(), conv(HIDDEN, OUT, 3, padding=1)),
        )
    )


def preactivation() -> nn.Module:
    return Residual(
        nn.Sequential(
            *(nn.BatchNorm2d(OUT), nn.ReLU(), nn.Conv2d(OUT, HIDDEN, 3, padding=1, bias=False)),
            *(nn.BatchNorm2d(HIDDEN), nn.ReLU(), nn.Conv2d(HIDDEN, OUT, 3, padding=1)),
        )
    )


def depthwise_separable(width: int) -> nn.Module:
    return nn.Sequential(
        *conv_norm(OUT, OUT, groups=OUT), nn.ReLU(), *conv_norm(OUT, width, 1, bias=False)
    )


def fused() -> nn.Module:
    body = nn.Sequential(*conv_norm(OUT, HIDDEN), nn.SiLU(), *conv_norm(HIDDEN, OUT, 1))
    return Residual(body)


def inverted_chain() -> nn.Module:
    """An inverted residual without a shortcut, whose squeeze-excite has x * x.sigmoid() inside."""

    def scale(m, h):
        y = m.down(h.mean((2, 3), keepdim=True))
        return h * torch.sigmoid(m.up(y * torch.sigmoid(y)))

    return Written(
        lambda m, x: m.q(m.se(m.dw(m.p(x).relu()).relu())),
        p=conv_norm(OUT, HIDDEN, 1),
        dw=conv_norm(HIDDEN, HIDDEN, groups=HIDDEN),
        q=conv_norm(HIDDEN, OUT, 1),
        se=Written(scale, **excite()),
    )


def inverted() -> nn.Module:
    return Written(
        lambda m, x: x + m.q(m.se(m.dw(m.p(x).relu()).relu())),
        p=conv_norm(OUT, HIDDEN, 1),
        dw=conv_norm(HIDDEN, HIDDEN, groups=HIDDEN),
        q=conv_norm(HIDDEN, OUT, 1),
        se=Written(
            lambda m, h: h * torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3), keepdim=True))))),
            **excite(),
        ),
    )


def of_dims(dims: int) -> nn.Module:
    spatial = tuple(range(2, 2 + dims))
    return Written(
        lambda m, x: (
            x
            + m.q(
                (h := m.p(x).relu())
                * torch.sigmoid(m.up(F.relu(m.down(h.mean(spatial, keepdim=True)))))
            )
        ),
        p=conv_norm(OUT, HIDDEN, dims=dims),
        q=conv_norm(HIDDEN, OUT, dims=dims),
        **excite(dims),
    )


def post_norm_of_tokens() -> nn.Module:
    branch = Written(lambda m, x: m.norm(m.mlp(x)), mlp=mlp(nn.GELU()), norm=nn.LayerNorm(OUT))
    return tokens(branch)


def layer_scale(width: int) -> nn.Module:
    gamma = nn.Parameter(torch.randn(width, 1, 1))
    return Written(lambda m, h: h * m.gamma, gamma=gamma)


def reads_the_shape_of_the_fork() -> nn.Module:
    return Written(
        lambda m, x: x + m.q(F.interpolate(m.p(x).relu(), size=x.shape[2:])),
        p=conv_norm(OUT, HIDDEN, stride=2),
        q=conv_norm(HIDDEN, OUT),
    )


def pooled_shortcut(pool: nn.Module) -> nn.Module:
    p, q = conv_norm(OUT, HIDDEN), conv_norm(HIDDEN, OUT)
    return Written(
        lambda m, x: F.avg_pool2d(x, 2) + m.q(m.pool(m.p(x).relu())), p=p, q=q, pool=pool
    )


def plain(dims: int) -> nn.Module:
    p, q = conv_norm(OUT, HIDDEN, dims=dims), conv_norm(HIDDEN, OUT, dims=dims)
    return nn.Sequential(*p, nn.ReLU(), *q)


def excite_output() -> dict[str, nn.Module]:
    return {"down": nn.Conv2d(OUT, NARROW, 1), "up": nn.Conv2d(NARROW, OUT, 1)}


def se_of_output(m, y):
    return y * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))


# --- operations by one row each ---------------------------------------------------------------


def operation(written, width: int = HIDDEN, dims: int = 2, made: int | None = None, **members):
    """x + q(written(norm(p(x)))): `made` channels go into the operation, `width` come out."""
    return Written(
        lambda m, x: x + m.q(written(m, m.p(x))),
        p=conv_norm(OUT, made or width, dims=dims),
        q=conv_norm(width, OUT, dims=dims),
        **members,
    )


def layer(module: nn.Module, width: int = HIDDEN, dims: int = 2, made: int | None = None):
    return operation(lambda m, h: m.layer(h), width, dims, made, layer=module)


def glu_of_tokens() -> nn.Module:
    p, q = nn.Linear(OUT, 2 * HIDDEN), nn.Linear(HIDDEN, OUT)
    return Written(lambda m, x: m.q(F.glu(m.p(x))), p=p, q=q)


def times_max_of_rows(m, h):
    values, _ = h.max(3, keepdim=True)
    return h * torch.sigmoid(values)


def norms_over_their_mean(m, h):
    norms = torch.linalg.vector_norm(h, 2, (2, 3), True)
    return h * (norms / (norms.mean(1, keepdim=True) + 1e-6))


def norms_of_volumes(m, h):
    g = torch.norm(h, p=2, dim=(-3, -2, -1), keepdim=True)
    return h * g / (g.mean(1, keepdim=True) + 1e-3)


def instance_norm_first() -> nn.Module:
    """A functional norm of maps in front of the branch, whose channels are in dimension 1."""
    return Written(
        lambda m, x: x + m.q(m.p(F.instance_norm(x, weight=m.weight, bias=m.bias)).relu()),
        p=conv_norm(OUT, HIDDEN),
        q=conv_norm(HIDDEN, OUT),
        weight=nn.Parameter(torch.rand(OUT) + 0.5),
        bias=nn.Parameter(torch.randn(OUT)),
    )


def group_norm(groups: int, width: int) -> nn.Module:
    """A functional group norm behind a convolution, with parameters of the same module's own."""
    norm = Written(
        lambda m, h: F.group_norm(m.dw(h), groups, m.weight, m.bias).relu(),
        dw=nn.Conv2d(width, width, 3, padding=1, groups=width),
        weight=nn.Parameter(torch.rand(width) + 0.5),
        bias=nn.Parameter(torch.randn(width)),
    )
    return layer(norm, width)


def bottleneck(*norms: nn.Module) -> nn.Module:
    """A bottleneck of 4 and 12 hidden channels with a norm, maybe activated, behind each layer."""
    sizes = ((OUT, NARROW, 1), (NARROW, 12, 3), (12, OUT, 1))
    body = [
        nn.Sequential(nn.Conv2d(*size, padding=size[2] // 2, bias=False), norm)
        for size, norm in zip(sizes, norms, strict=True)
    ]
    return Residual(nn.Sequential(*body))


def group_norm_bottleneck() -> nn.Module:
    last = GroupNormAct(OUT, 5, apply_act=False)
    return bottleneck(GroupNormAct(NARROW, 2), GroupNormAct(12, 6), last)


def batch_norm_bottleneck() -> nn.Module:
    last = BatchNormAct2d(OUT, apply_act=False)
    return bottleneck(BatchNormAct2d(NARROW), BatchNormAct2d(12), last)


def linear_of_parameters() -> nn.Module:
    p, q = nn.Parameter(torch.randn(HIDDEN, OUT) * 0.1), nn.Parameter(torch.randn(OUT, HIDDEN))
    return Written(lambda m, x: F.linear(F.gelu(F.linear(x, m.p)), m.q, m.b), p=p, q=q, b=bias())


def bias() -> nn.Parameter:
    return nn.Parameter(torch.randn(OUT))


def conv_of_a_layer() -> nn.Module:
    def written(m, x):
        h = F.conv2d(x, m.p.weight, m.p.bias, m.p.stride, padding=1).relu()
        h = F.conv2d(h, m.deep.weight, None, 1, m.deep.padding, groups=m.deep.groups)
        return x + m.q(h.relu())

    deep = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False)
    return Written(written, p=nn.Conv2d(OUT, HIDDEN, 3), deep=deep, q=nn.Conv2d(HIDDEN, OUT, 1))


# --- groups at a branch's ends ------------------------------------------------------------------


def of_groups(written, width: int, **members) -> nn.Module:
    """A branch from and to layers of two groups."""
    p, q = (nn.Conv2d(a, b, 1, groups=2) for a, b in ((OUT, width), (width, OUT)))
    ends = {
        "p": nn.Sequential(p, nn.BatchNorm2d(width)),
        "q": nn.Sequential(q, nn.BatchNorm2d(OUT)),
    }
    return Written(lambda m, x: x + m.q(written(m, m.p(x).relu())), **ends, **members)


def grouped_reader() -> nn.Module:
    p, q = conv_norm(OUT, HIDDEN), conv_norm(HIDDEN, OUT, groups=2)
    return Written(lambda m, x: x + m.q(m.p(x).relu()), p=p, q=q)


def permuted(m, h):
    b, rows, columns = h.shape[0], h.shape[2], h.shape[3]
    turned = h.reshape(b, 2, -1, rows, columns).permute(0, 2, 1, 3, 4)
    return turned.reshape(b, -1, h.shape[2], h.shape[3])


def shuffled(m, h):
    b, c, rows, columns = h.size()
    h = h.view(b, 2, c // 2, rows, columns).transpose(1, 2).contiguous()
    return m.deep(h.view(b, c, rows, columns))


def shuffled_groups(width: int, written=shuffled) -> nn.Module:
    deep = conv_norm(width, width, 3, groups=width)
    return of_groups(written, width, deep=deep)


class Type(NamedTuple):
    """A block type with what is expected of its conversion.

    Attributes:
        build: makes the block, between OUT channels and OUT channels.
        exact: its exact split; None where either will do.
        squeezes: whether sub-blocks wait half-way for a sum.
        dims: dimensions of an image.
        matched: what split="matched" makes of it, if not the same.
    """

    build: Callable[[], nn.Module]
    exact: str | None = "hidden-channel"
    squeezes: bool = False
    dims: int = 2
    matched: str = ""


def squeezing(build, dims: int = 2) -> Type:
    return Type(build, squeezes=True, dims=dims, matched="own-squeeze")


def either(build) -> Type:
    return Type(build, exact=None)


def by_trunk(build) -> Type:
    return Type(build, exact="shared-trunk")


TYPES: dict[str, Type] = {
    "se_mean": squeezing(se_mean),
    "se_view": squeezing(lambda: se_linear(lambda m, h: h * viewed(m, h))),
    "se_view_expand_as": squeezing(lambda: se_linear(lambda m, h: h * viewed(m, h).expand_as(h))),
    "se_functional_pool": squeezing(se_functional),
    "se_inverted": squeezing(inverted),
    "se_inverted_chain": squeezing(inverted_chain),
    "se_1d": squeezing(lambda: of_dims(1), 1),
    "se_3d": squeezing(lambda: of_dims(3), 3),
    "effective_se_hidden": either(lambda: residual(EffectiveSEModule(HIDDEN))),
    "eca_hidden": by_trunk(lambda: residual(EcaModule(HIDDEN))),
    "cbam_hidden": by_trunk(lambda: residual(LightCbamModule(HIDDEN, rd_channels=NARROW))),
    "gather_excite": Type(gather_excite),
    "grn": Type(lambda: residual(GlobalResponseNorm(HIDDEN, channels_last=False)), squeezes=True),
    "grn_channels_last": Type(grn_channels_last, squeezes=True),
    "se_output": Type(lambda: on_output(Written(se_of_output, **excite_output()))),
    "eca_output": Type(lambda: on_output(EcaModule(OUT))),
    "cbam_output": Type(lambda: on_output(LightCbamModule(OUT, rd_channels=NARROW))),
    "effective_se_output": Type(lambda: on_output(EffectiveSEModule(OUT))),
    "glu": Type(glu),
    "glu_mlp": Type(lambda: tokens(GluMlp(OUT, 2 * HIDDEN, OUT))),
    "swiglu": Type(lambda: tokens(SwiGLU(OUT, HIDDEN, OUT))),
    "swiglu_norm": by_trunk(lambda: tokens(SwiGLU(OUT, HIDDEN, OUT, norm_layer=nn.LayerNorm))),
    "mlp": Type(lambda: tokens(mlp(nn.GELU()))),
    "mlp_batch_norm": either(lambda: vectors(mlp(nn.BatchNorm1d(HIDDEN), nn.ReLU()))),
    "mlp_layer_norm": by_trunk(lambda: tokens(mlp(nn.LayerNorm(HIDDEN), nn.GELU()))),
    "mlp_depthwise": either(lambda: tokens(MapMlp(8))),
    "channels_last": Type(channels_last_residual),
    "group_norm": Type(lambda: residual(nn.GroupNorm(6, 12), 12)),
    "group_norm_output": Type(lambda: on_output(nn.GroupNorm(5, OUT))),
    "std_conv": Type(lambda: standardised(StdConv2d)),
    "scaled_std_conv": Type(lambda: standardised(ScaledStdConv2d)),
    "layer_scale_hidden": Type(lambda: residual(layer_scale(HIDDEN))),
    "layer_scale_output": Type(lambda: on_output(layer_scale(OUT))),
    "blur_pool": either(lambda: pooled_shortcut(BlurPool2d(HIDDEN))),
    "average_pool": Type(lambda: pooled_shortcut(nn.AvgPool2d(2))),
    "padded": Type(lambda: hidden(lambda m, h: F.avg_pool2d(F.pad(h, (1, 1, 1, 1)), 3, 1))),
    "ghost": Type(ghost),
    "two_producers": Type(two_producers),
    "res2net": by_trunk(res2net),
    "grouped_sum": Type(grouped_sum),
    "preactivation": Type(preactivation),
    "depthwise_separable": Type(lambda: Residual(depthwise_separable(OUT))),
    "depthwise_separable_chain": Type(lambda: depthwise_separable(18)),
    "fused": Type(fused),
    "repvgg": Type(repvgg),
    "post_norm": Type(lambda: on_output(LayerNorm2d(OUT))),
    "post_norm_of_tokens": Type(post_norm_of_tokens),
    "norm_act_output": Type(
        lambda: Residual(
            nn.Sequential(
                *conv_norm(OUT, HIDDEN),
                nn.ReLU(),
                nn.Conv2d(HIDDEN, OUT, 3, padding=1, bias=False),
                BatchNormAct2d(OUT),
            )
        )
    ),
    "conv1d": Type(lambda: Residual(plain(1)), dims=1),
    "conv3d": Type(lambda: Residual(plain(3)), dims=3),
    "two_consumers": Type(two_consumers),
    "shape_of_the_fork": either(reads_the_shape_of_the_fork),
    "glu_layer": Type(lambda: layer(nn.GLU(1), made=2 * HIDDEN)),
    "glu_function": Type(lambda: tokens(glu_of_tokens())),
    "clamp_in_place": Type(lambda: operation(lambda m, h: h.clamp_(0))),
    "instance_norm_1d": Type(lambda: layer(nn.InstanceNorm1d(HIDDEN), dims=1), dims=1),
    "instance_norm_3d": Type(lambda: layer(nn.InstanceNorm3d(HIDDEN, affine=True), dims=3), dims=3),
    "max_of_channels": by_trunk(
        lambda: operation(lambda m, h: h * torch.sigmoid(h.max(1)[0].unsqueeze(1)))
    ),
    "max_of_rows": Type(lambda: operation(times_max_of_rows)),
    "vector_norm": Type(lambda: operation(norms_over_their_mean), squeezes=True),
    "einsum": by_trunk(lambda: operation(lambda m, h: torch.einsum("bchw->bcwh", h))),
    "repeat": by_trunk(
        lambda: operation(lambda m, h: h * h.mean((2, 3), keepdim=True).repeat(1, 1, 8, 8))
    ),
    "topk": by_trunk(lambda: operation(lambda m, h: h - h.topk(2, 1)[0].sum(1, keepdim=True))),
    "sort": by_trunk(lambda: operation(lambda m, h: torch.sort(h, dim=3).values + h)),
    "linear_of_parameters": Type(lambda: tokens(linear_of_parameters())),
    "conv_of_a_layer": Type(conv_of_a_layer),
    "norm_of_places_from_the_back": Type(
        lambda: operation(norms_of_volumes, dims=3), squeezes=True, dims=3
    ),
    "constant_pad": Type(
        lambda: layer(nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.AvgPool2d(3, 1)))
    ),
    "hardshrink": Type(lambda: layer(nn.Hardshrink(0.2))),
    "softshrink": Type(lambda: layer(nn.Softshrink(0.2))),
    "softmax_2d": by_trunk(lambda: layer(nn.Softmax2d())),
    "upsampling_nearest": Type(
        lambda: layer(nn.Sequential(nn.MaxPool2d(2), nn.UpsamplingNearest2d(scale_factor=2)))
    ),
    "instance_norm_first": Type(instance_norm_first),
    "group_norm_function": Type(lambda: group_norm(6, 12)),
    "group_norm_plain": Type(lambda: operation(lambda m, h: F.group_norm(h, 6).relu(), 12)),
    "group_norm_bottleneck": by_trunk(group_norm_bottleneck),
    "grouped_reader": Type(grouped_reader),
    "shuffled_groups": Type(lambda: shuffled_groups(20)),
    "shuffled_groups_whole": by_trunk(lambda: shuffled_groups(HIDDEN)),
    "channel_shuffle": Type(
        lambda: of_groups(lambda m, h: m.shuffle(h), 20, shuffle=nn.ChannelShuffle(2))
    ),
    "shuffled_by_permute": Type(lambda: operation(permuted)),
}


SIZES = {1: (3, 12), 2: (3, 8, 8), 3: (3, 4, 6, 6)}


OF_EACH_KIND = ("se_mean", "post_norm_of_tokens", "glu_mlp", "res2net")
"""Types that stand for all where a property hardly depends on what the block does."""


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a seasoned network of one block, in evaluation mode."""
    torch.manual_seed(seed)
    kind = TYPES[name]
    return randomised_throughout(
        nn.Sequential(conv_norm(3, OUT, dims=kind.dims), kind.build()), seed
    )


def size_of(name: str) -> tuple[int, ...]:
    """Return the shape of one image."""
    return SIZES[TYPES[name].dims]
