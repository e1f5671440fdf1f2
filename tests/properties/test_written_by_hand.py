"""Hidden operations written in ways that look like others: exact all the same, or refused."""

import pytest
import torch
import torch.nn.functional as F
from block_nets import HIDDEN, OUT, hidden, net
from helpers import converts, reasons
from nets import Residual, Written, conv_norm
from torch import nn

H = HIDDEN


def tail(written):
    """A block whose branch goes through `written` between its last layer and its norm."""
    parts = {"p": conv_norm(OUT, H), "q": nn.Conv2d(H, OUT, 1), "n": nn.BatchNorm2d(OUT)}
    return Written(lambda m, x: x + m.n(written(m.q(m.p(x).relu()))), **parts)


EXACT = {
    "divided_by_its_width": hidden(lambda m, h: h / h.shape[1]),
    "pooled_over_channels": hidden(lambda m, h: F.max_pool3d(h, (3, 1, 1), 1, (1, 0, 0))),
    "rows_and_columns_exchanged": hidden(lambda m, h: F.relu(h).transpose(-1, -2)),
    "last_chunk_first": hidden(lambda m, h: torch.cat(h.chunk(2, 1)[::-1], 1)),
    "clamped_by_channel": hidden(
        lambda m, h: torch.clamp(h, m.lo, m.hi),
        lo=nn.Parameter(-torch.rand(H, 1, 1)),
        hi=nn.Parameter(torch.rand(H, 1, 1)),
    ),
    "by_keyword": hidden(lambda m, h: torch.div(input=h, other=2) + torch.relu(input=h)),
    "squared": tail(lambda y: y * y),
    "divided_and_floored": tail(lambda y: torch.div(y, 0.1, rounding_mode="floor")),
    "normed_by_channel_after": Written(
        lambda m, x: x + (lambda y: y / (y.norm(dim=1, keepdim=True) + 1e-3))(m.q(m.p(x).relu())),
        p=conv_norm(OUT, H),
        q=conv_norm(H, OUT),
    ),
    "transposed_convolution": hidden(
        lambda m, h: m.t(h)[..., :8, :8], t=nn.ConvTranspose2d(H, H, 3, groups=H)
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_it_is_exact(name):
    assert converts(net(EXACT[name])) == 1


REFUSED = {
    "mean_over_images": lambda m, h: h - h.mean(0, keepdim=True),
    "mean_over_images_and_places": lambda m, h: h - h.mean((0, 2, 3), keepdim=True),
    "mean_from_the_back": lambda m, h: h - h.mean(-4, keepdim=True),
    "divided_by_the_batch": lambda m, h: h / h.shape[0],
    "softmax_over_images": lambda m, h: h * F.softmax(h, 0),
    "flipped_images": lambda m, h: h.flip(2, 0),
    "sorted_images": lambda m, h: h + torch.sort(h, 0)[0],
    "the_largest_images": lambda m, h: h + h.topk(1, 0)[0],
    "repeated_images": lambda m, h: h + h.mean((1, 2, 3), keepdim=True).repeat(2, 1, 1, 1)[:1],
    "equation_of_images": lambda m, h: torch.einsum("bchw,dchw->bchw", h, h),
    "equation_by_places": lambda m, h: torch.einsum("bchw,bchw->cbhw", h, h).transpose(0, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_images_is_refused(name):
    assert "every image by itself" in reasons(net(hidden(REFUSED[name])))


def test_an_alias_of_the_input_is_not_overwritten():
    body = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), *conv_norm(OUT, OUT))
    assert "overwrites" in reasons(net(Residual(body)))


def test_a_weight_that_is_read_elsewhere_stays():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Residual(nn.Sequential(*conv_norm(OUT, H), nn.ReLU(), *conv_norm(H, OUT)))

        def forward(self, x):
            return self.block(x) + F.conv2d(x, self.block.body[0].weight, padding=1).mean()

    assert "also read outside" in reasons(net(Reads()))
