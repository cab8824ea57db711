"""The real batcher on a virtual clock, beside the rules of other servers: before a GPU is rented.

    python -m loadtests.simulate --compare --load 0.9 --mix 512:40,768:30,1024:30 --seeds 20 --json
    python -m loadtests.simulate --trace requests.csv --gpus 2 --curve flux-h200

`--compare` plays the same random arrivals to every rule. The load is a part of the roofline: the pictures a
second of a device that never waits and pays nothing that batching can save. `--trace` plays recorded arrivals
to this server: what would its users see? Curves are public measurements, or a file that the server's
calibration has written on your device. Steps take exactly what the curve says; HTTP, the making of files and
planning cost nothing (planning takes 0.05 ms with 30 pictures in hand, 0.3 ms with 100), and stages run one
after another: what a server wins by encoding and decoding beside its steps is left out.
"""

import argparse
import csv
import dataclasses
import datetime
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadtests.arrivals import Request, draw, read_trace
from loadtests.curves import CURVES, Curve, load_curve
from loadtests.rules import (
    Finishes,
    Rule,
    alone_s,
    first_mismatch,
    least_s,
    one_by_one,
    ours,
    scan_capped,
    scan_equal,
    serve,
)
from loadtests.traffic import Share, parse_mix
from server.costs import Costs
from server.settings import Settings

RULES: Final[dict[str, Rule]] = {
    "none": one_by_one,
    "fifo": first_mismatch,
    "scan": scan_equal,
    "scan_caps": scan_capped,
    "ours": ours,
}
IN_TIME: Final = 5.0  # times the time alone: what counts as in time where a request names no deadline
CAPACITY_REQUESTS: Final = 400
RESULTS: Final = Path(__file__).parent / "results" / "simulate.csv"


def main() -> int:
    """Compare rules or play a trace; the exit status is 2 for arguments that make no sense."""
    options = _parser().parse_args()
    try:
        curve = load_curve(options.curve)
        if options.trace is not None:
            requests = read_trace(options.trace, txt_rows=curve.txt_rows)
            report = play(requests, curve, gpus=options.gpus, max_backlog_s=options.max_backlog_s)
            _print(report, as_json=options.json)
            return 0
        mix, keys = parse_mix(options.mix), [float(part) for part in options.keys.split(",")]
        _check(options, keys)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"simulate: {error}\n")
        return 2
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    table = compare(
        curve,
        mix=mix,
        load=options.load,
        seeds=seeds,
        count=options.requests,
        burstiness=options.burstiness,
        keys=keys,
    )
    if options.keep:
        _keep(options, table)
    _print(table, as_json=options.json)
    return 0


def compare(
    curve: Curve,
    *,
    mix: Sequence[Share],
    load: float,
    seeds: Sequence[int],
    count: int,
    burstiness: float = 1.0,
    keys: Sequence[float] = (1.0,),
) -> dict[str, dict[str, object]]:
    """Play the same arrivals to every rule; return the means over the seeds by rule.

    `capacity` is a share of the roofline, p50 to p99 are seconds, `slowdown_mean` is time over time alone,
    `within_5x` the share done within five times that, `slowdown_light` the mean slowdown of the keys that ask
    for less than an even part: a fair server keeps it near one whatever the others ask.
    A rule whose `capacity` is below the load is not `stable`: its times grow with the length of the run.
    `ours` also has its ratios to the scanning rules, paired by seed, with 95 % intervals.
    """
    costs = Costs.of(curve.table)
    weights = [share.weight for share in mix]
    pictures = [Request(0.0, share.width, share.height, txt_rows=curve.txt_rows) for share in mix]
    mean_s = statistics.fmean((least_s(each, costs) for each in pictures), weights)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RULES}
    for seed in seeds:
        requests = draw(
            seed,
            count=count,
            rate=load / mean_s,
            mix=mix,
            burstiness=burstiness,
            keys=keys,
            txt_rows=curve.txt_rows,
        )
        for name, rule in RULES.items():
            measured = measure(requests, rule(requests, curve), costs)
            runs[name].append({"capacity": capacity(rule, requests[:CAPACITY_REQUESTS], curve), **measured})
    table: dict[str, dict[str, object]] = {}
    for name, each in runs.items():
        means = _means(each)
        table[name] = {**means, "stable": means["capacity"] > load}
    for peer in ("scan", "scan_caps"):
        table["ours"][f"against_{peer}"] = _paired(runs["ours"], runs[peer])
    return table


def capacity(rule: Rule, requests: Sequence[Request], curve: Curve) -> float:
    """Return the share of the roofline that a rule reaches while its queue is never empty."""
    costs = Costs.of(curve.table)
    waiting = [dataclasses.replace(request, arrived_s=0.0) for request in requests]
    ends = [end for end in rule(waiting, curve) if end is not None]
    return sum(least_s(request, costs) for request in waiting) / max(ends)


def measure(requests: Sequence[Request], finishes: Finishes, costs: Costs) -> dict[str, float]:
    """Return what the users of a run saw."""
    done = [
        (request, end - request.arrived_s)
        for request, end in zip(requests, finishes, strict=True)
        if end is not None
    ]
    slowdowns: dict[str, list[float]] = {}
    for request, wait_s in done:
        slowdowns.setdefault(request.key, []).append(wait_s / alone_s(request, costs))
    everyone = [slowdown for each in slowdowns.values() for slowdown in each]
    modest = [each for each in slowdowns.values() if len(each) * len(slowdowns) < len(everyone)]
    light = [slowdown for each in modest for slowdown in each]
    cuts = statistics.quantiles([wait_s for _, wait_s in done], n=100, method="inclusive")
    return {
        "p50": cuts[49],
        "p95": cuts[94],
        "p99": cuts[98],
        "slowdown_mean": statistics.fmean(everyone),
        "within_5x": sum(slowdown <= IN_TIME for slowdown in everyone) / len(requests),
        "slowdown_light": statistics.fmean(light or everyone),
    }


def play(requests: Sequence[Request], curve: Curve, *, gpus: int, max_backlog_s: float) -> dict[str, object]:
    """Play a trace to this server.

    `goodput` is the pictures a second that are done by their deadline, or within five times their time alone;
    `refused` are answered at the door, since the backlog is full or the forecast is later than the deadline.
    `forecast_within_2x` is the part of those done that took between half and twice as long as forecast.
    Raises `ValueError` for a trace of which nothing would be left.
    """
    costs = Costs.of(curve.table)
    served = serve(requests, curve, max_backlog_s=max_backlog_s, devices=gpus)
    ends = [end for end in served.finishes if end is not None]
    if len(ends) < 2:
        raise ValueError("a trace needs at least two requests that can be done")
    in_time = sum(
        end is not None and end - request.arrived_s <= _limit_s(request, costs)
        for request, end in zip(requests, served.finishes, strict=True)
    )
    lasts_s = max(*ends, requests[-1].arrived_s) - requests[0].arrived_s
    kept = [
        0.5 <= (end - requests[number].arrived_s) / served.admitted[number].forecast_s <= 2
        for number, end in enumerate(served.finishes)
        if end is not None
    ]
    return {
        "requests": len(requests),
        "gpus": gpus,
        "load": sum(least_s(request, costs) for request in requests) / (_span_s(requests) * gpus),
        "goodput": in_time / lasts_s,
        "in_time": in_time / len(requests),
        "refused": served.refused,
        "dropped": served.dropped,
        "forecast_within_2x": sum(kept) / len(kept),
        **measure(requests, served.finishes, costs),
    }


def _span_s(requests: Sequence[Request]) -> float:
    return max(requests[-1].arrived_s - requests[0].arrived_s, 1e-9)


def _limit_s(request: Request, costs: Costs) -> float:
    return request.deadline_s if request.deadline_s is not None else IN_TIME * alone_s(request, costs)


def _means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}


def _paired(
    runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]
) -> dict[str, list[float]]:
    """Return mean, lower and upper bound of the ratios by seed, and of the difference of `within_5x`."""
    found = {}
    for name in ("p50", "p95", "p99", "slowdown_mean"):
        found[name] = _interval([run[name] / other[name] for run, other in zip(runs, others, strict=True)])
    gains = [run["within_5x"] - other["within_5x"] for run, other in zip(runs, others, strict=True)]
    return {**found, "within_5x": _interval(gains)}


def _interval(values: Sequence[float]) -> list[float]:
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = statistics.NormalDist().inv_cdf(0.975) * spread / len(values) ** 0.5
    return [mean, mean - half, mean + half]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--compare", action="store_true", help="compare rules on drawn arrivals")
    what.add_argument(
        "--trace", type=Path, help="CSV with arrived_s,width,height[,steps,priority,key,deadline_s]"
    )
    parser.add_argument(
        "--curve", default="qwen-h200", help=f"{', '.join(CURVES)} or a file of a calibration"
    )
    parser.add_argument("--gpus", type=int, default=1, choices=range(1, 65), metavar="N", help="with --trace")
    parser.add_argument(
        "--max-backlog-s",
        type=float,
        default=Settings.model_fields["max_backlog_s"].default,
        help="the server's setting, with --trace",
    )
    parser.add_argument("--load", type=float, default=0.9, help="share of the roofline")
    parser.add_argument("--mix", default="512:40,768:30,1024:30", help="SIDE:PART,... of the traffic")
    parser.add_argument(
        "--burstiness", type=float, default=1.0, help="squared variation of gaps; 1 is Poisson"
    )
    parser.add_argument("--keys", default="100", help="parts of the traffic by API key, such as 85,5,5,5")
    parser.add_argument("--seeds", type=int, default=20, help="runs, each with its own arrivals")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=6000, help="of each run")
    parser.add_argument("--keep", action="store_true", help=f"append the rows to {RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def _check(options: argparse.Namespace, keys: Sequence[float]) -> None:
    """Raise `ValueError` for a number with which there is nothing to compare."""
    for name, least in (("seeds", 1), ("requests", 2)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)}; allowed: {least} and more")
    positive = [("load", options.load), ("burstiness", options.burstiness), *(("keys", key) for key in keys)]
    for name, value in positive:
        if not 0 < value < math.inf:
            raise ValueError(f"--{name} {value:g}; allowed: numbers above 0")


def _print(report: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    for name, value in report.items():
        cells = value if isinstance(value, dict) else {"": value}
        shown = "  ".join(
            f"{key} {_shown(cell)}".strip() for key, cell in cells.items() if not isinstance(cell, dict)
        )
        sys.stdout.write(f"{name:10} {shown}\n")


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _keep(options: argparse.Namespace, table: Mapping[str, Mapping[str, object]]) -> None:
    """Append one row per rule, with what made it."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    made = {"date": datetime.date.today().isoformat(), "commit": commit}
    asked = {name: getattr(options, name) for name in ("curve", "load", "mix", "burstiness", "keys")}
    played = {"requests": options.requests, "seeds": options.seeds, "first_seed": options.first_seed}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for rule, means in table.items():
            cells = {name: _shown(value) for name, value in means.items() if not isinstance(value, dict)}
            row = {**made, **asked, **played, "rule": rule, **cells}
            if new:
                writer.writerow(row)
                new = False
            writer.writerow(row.values())


if __name__ == "__main__":
    sys.exit(main())
