"""The counter against what can be counted by hand: storages in steps of 512 bytes, from birth to death."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import norm
from kernels.launches import caught
from model.allocations import Allocations


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_storage_counts_until_nothing_refers_to_it() -> None:
    with Allocations() as allocations:
        first = meta(1000)  # 4000 bytes are eight times 512
        assert allocations.live_bytes == 4096
        second = first + 1
        view = first[:10]
        del first
        assert allocations.live_bytes == 2 * 4096, "the view keeps it"
        del view
        assert allocations.live_bytes == 4096
        third = second.half()
        assert third.dtype == torch.float16
        del second
        assert allocations.live_bytes == 2048
        assert allocations.take_peak() == 2 * 4096
        assert allocations.take_peak() == 2048, "the next peak begins with what is there"
        del third
    assert allocations.live_bytes == 0


def test_what_was_there_before_does_not_count() -> None:
    x, out = meta(64, 64), meta(64, 64)
    with Allocations() as allocations, torch.inference_mode():
        x.add_(1).view(32, 128).t()
        torch.addmm(x[0], x, x.t(), out=out)
        assert F.dropout(x, training=False).shape == x.shape
        del x, out
    assert allocations.take_peak() == 0


def test_the_parts_of_an_operation_count() -> None:
    """isfinite is `(x == x) * (abs(x) != inf)`: three results of 1000 bytes and abs of 4000 live at once."""
    x = meta(1000)
    with Allocations() as allocations, torch.inference_mode():
        finite = torch.isfinite(x)
        assert allocations.live_bytes == 1024
        assert bool(finite.all())
    assert allocations.take_peak() == 3 * 1024 + 4096


def test_attention_never_holds_its_scores() -> None:
    q = meta(1, 2, 4096, 64, dtype=torch.bfloat16)
    with Allocations() as allocations, torch.inference_mode():
        attended = F.scaled_dot_product_attention(q, q, q)
        assert attended.shape == q.shape
        assert allocations.live_bytes == q.nbytes
    assert allocations.take_peak() == q.nbytes + 2 * 4096 * 4, "and the sums of its rows"


def test_pictures_stay_channels_last_and_are_made_once() -> None:
    x = meta(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = meta(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    with Allocations() as allocations, torch.inference_mode():
        larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
        assert allocations.take_peak() == larger.nbytes == 4 * x.nbytes
        smoothed = F.conv2d(larger, weight, padding=1)
        assert smoothed.is_contiguous(memory_format=torch.channels_last)
    assert allocations.take_peak() == 2 * larger.nbytes


def test_a_kernel_counts_what_its_wrapper_allocates() -> None:
    x, scale = meta(7, 64), meta(64)
    launched: list[object] = []
    with Allocations() as allocations, caught(lambda kernel, *_: launched.append(kernel)):
        norm.rms_norm(x, scale)
    assert launched == [norm._rms_norm]
    assert allocations.take_peak() == 4 * 512, "7 rows of 256 bytes"


def test_what_comes_back_to_the_host_is_not_of_the_device() -> None:
    x = meta(1000)
    with Allocations() as allocations, torch.inference_mode():
        assert x.cpu().device.type == "cpu"
        assert torch.zeros(1000).to("meta").is_meta
    assert allocations.take_peak() == 4096, "only what went the other way"
