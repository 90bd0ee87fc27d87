"""GroupNorm in tiles, with the statistics of the whole image."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from rdsnet.modeling.group_statistics import GroupStatistics, Part

STRIDE, MARGIN = 4, 16


class Net(nn.Module):
    """Two GroupNorms in a row after a stride of 4, the second called on two levels."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, stride=4)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8, affine=False))
        self.coarse = nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, x):
        x = self.first(self.down(x))
        return self.second(x), self.second(self.coarse(x))


def tiles_of(width):
    """Beginning and end of cores along the only axis that is cut."""
    return [(start, min(start + 48, width)) for start in range(0, width, 48)]


def windows(net, image):
    width = image.shape[-1]
    for x1, x2 in tiles_of(width):
        left, right = max(x1 - MARGIN, 0), min(x2 + MARGIN, width)
        window = image[..., left:right]
        part = Part(x1 - left, 0, x2 - left if x2 < width else None, None, window.shape[-2:])
        yield window, part, x1 - left, x2 - x1


def net_and_image():
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.first[1].weight)
    nn.init.normal_(net.first[1].bias)
    # The left is darker and calmer than the right: alone, its tiles would be normalised otherwise.
    image = torch.randn(1, 3, 64, 160) * torch.linspace(0.2, 3, 160) + torch.linspace(0, 2, 160)
    return net, image


def test_tiles_give_what_the_whole_gives():
    net, image = net_and_image()
    with torch.no_grad():
        fine, coarse = net(image)
        statistics = GroupStatistics(net)
        statistics.measure(
            lambda: ((lambda w=w: net(w), part) for w, part, _, _ in windows(net, image))
        )
        alone, together = [], []
        for window, _, start, length in windows(net, image):
            cells = slice(start // STRIDE, (start + length) // STRIDE)
            coarse_cells = slice(start // 8, (start + length) // 8)
            alone.append(net(window)[0][..., cells])
            with statistics.used():
                found, found_coarse = net(window)
            together.append((found[..., cells], found_coarse[..., coarse_cells]))
        after = net(image)[0]
    assert torch.allclose(torch.cat([f for f, _ in together], -1), fine, atol=1e-4)
    assert torch.allclose(torch.cat([c for _, c in together], -1), coarse, atol=1e-4)
    assert not torch.allclose(torch.cat(alone, -1), fine, atol=0.1)
    assert torch.equal(after, fine)  # outside, the model is as it was


def seen(net, window):
    """Maps of a window, in a thread of its own perhaps."""
    with torch.no_grad():
        return net(window)


def test_tiles_that_go_on_together_give_the_same_in_one_run():
    net, image = net_and_image()
    fine, coarse = seen(net, image)
    runs = []
    hook = net.down.register_forward_hook(lambda *_: runs.append(threading.get_ident()))
    statistics, tiles = GroupStatistics(net), list(windows(net, image))
    found = statistics.together([(partial(seen, net, w), part) for w, part, _, _ in tiles])
    hook.remove()
    assert len(runs) == len(set(runs)) == len(tiles)
    left = 0
    for (one, one_coarse), (_, _, start, length) in zip(found, tiles, strict=True):
        for stride, map_, whole in ((STRIDE, one, fine), (8, one_coarse, coarse)):
            own = map_[..., start // stride : (start + length) // stride]
            expected = whole[..., left // stride : (left + length) // stride]
            assert torch.allclose(own, expected, atol=1e-4)
        left += length
    # From then on, they have those statistics.
    with statistics.used():
        again = seen(net, tiles[0][0])[0]
    assert torch.equal(again, found[0][0])
    assert torch.equal(seen(net, image)[0], fine)


def test_an_error_in_one_of_the_tiles_is_raised_and_nothing_hangs():
    net, image = net_and_image()
    statistics, tiles = GroupStatistics(net), list(windows(net, image))

    def fails():
        seen(net.first, net.down(tiles[1][0]))
        raise OSError("the file ends here")

    runs = [(partial(seen, net, w), part) for w, part, _, _ in tiles]
    runs[1] = fails, tiles[1][1]
    with pytest.raises(OSError, match="the file ends here"):
        statistics.together(runs)
    assert "forward" not in vars(net.first[1])
    threads = [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]
    assert not threads
    # It works the next time.
    assert len(statistics.together([runs[0]])) == 1


def test_an_estimate_on_the_whole_is_exact_and_on_windows_it_is_near():
    net, image = net_and_image()
    fine = seen(net, image)[0]
    statistics = GroupStatistics(net)
    deviations = []
    columns = [(0, 160)], [(x, x + 32) for x in range(0, 160, 32)], [(0, 32)]
    for cut in columns:
        batch = torch.cat([image[..., x1:x2] for x1, x2 in cut])
        statistics.estimate(partial(seen, net, batch), is_whole=cut == [(0, 160)])
        with statistics.used():
            deviations.append((seen(net, image)[0] - fine).abs().mean().item())
    whole, spread, one_end = deviations
    assert whole < 1e-5
    assert spread < 0.15 * one_end


def test_a_model_without_group_norm_has_no_statistics():
    assert not GroupStatistics(nn.Conv2d(3, 3, 1))
    assert GroupStatistics(Net())


def test_half_precision_loses_no_more_than_the_rounding_of_the_result():
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(1, 8, 12, 16) + 30).bfloat16()  # a mean that takes many digits
    model = nn.Sequential(norm).eval()
    statistics = GroupStatistics(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = Part(0, 0, None, None, (12, 16))
        statistics.measure(lambda: [(lambda: model(x), whole)])
        with statistics.used():
            found = model(x)
    exact = nn.functional.group_norm(
        x.double(), 2, norm.weight.double(), norm.bias.double(), norm.eps
    )
    assert found.dtype == x.dtype
    # Half a unit of the result, and float32's roundings of factors that cancel.
    limit = 2**-8 * exact.abs() + 1e-4
    assert ((found.double() - exact).abs() <= limit).all()
