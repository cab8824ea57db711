"""Arrivals: the rate and the burstiness asked for, sizes by weight, and traces from files."""

import random
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest

from loadtests.traffic import Share, arrivals, bursty, parse_mix, poisson, recorded

MANY = 20_000


def gaps(variation: float) -> list[float]:
    times = islice(bursty(4.0, random.Random(0), variation=variation), MANY)
    return [later - earlier for earlier, later in pairwise([0.0, *times])]


@pytest.mark.parametrize("variation", [0.5, 1.0, 3.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(variation: float) -> None:
    # The standard error of a mean of n gaps is variation / sqrt(n) of it; four of them are allowed.
    assert fmean(gaps(variation)) == pytest.approx(1 / 4, rel=4 * variation / MANY**0.5)
    assert stdev(gaps(variation)) / fmean(gaps(variation)) == pytest.approx(variation, rel=0.1)


def test_sizes_come_by_weight_and_end_in_time() -> None:
    mix = parse_mix("512:3,256x384:1")
    traffic = arrivals(poisson(100, random.Random(1)), mix, random.Random(2), until_s=20)
    assert all(arrival.at_s < 20 for arrival in traffic)
    share = sum((arrival.width, arrival.height) == (512, 512) for arrival in traffic) / len(traffic)
    assert share == pytest.approx(0.75, abs=0.05)
    assert len({arrival.seed for arrival in traffic}) == len(traffic)


def test_a_mix_is_sides_or_sizes_with_weights() -> None:
    assert parse_mix("512:40,768x256") == (Share(512, 512, 40), Share(768, 256, 1))


@pytest.mark.parametrize("text", ["", "512:x", "500:1", "512:0", "2048", "512x"])
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"mix '.*'; allowed: "):
        parse_mix(text + ",a" if text == "512x" else text)


def test_a_trace_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrived_s,width,height,seed\n2.5,512,256,7\n1,256,256,\n")
    first, second = recorded(tmp_path / "trace.csv", random.Random(0))
    assert (first.at_s, first.width, first.height) == (1.0, 256, 256)
    assert (second.at_s, second.seed) == (2.5, 7)


def test_a_bad_line_of_a_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrived_s,width,height\n1,256,256\nsoon,256,256\n")
    with pytest.raises(ValueError, match=r"trace.csv, line 3: .*soon.*allowed"):
        recorded(tmp_path / "trace.csv", random.Random(0))
