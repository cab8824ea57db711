"""From timed steps to the table of `server.costs` whose predictions are nearest to them.

Pure: `server.worker.calibrate` measures, and asks for the table once.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

from server.costs import CostTable, StepKind, Timed

LEAST_OF_SOURCE: Final = 0.01  # of an encoding with one: texts that were timed too long leave it something


def fit(timed: Iterable[Timed]) -> CostTable:
    """Return the table whose predictions are nearest to the timings, by the squares of relative errors.

    Raises `ValueError` if one of the three kinds was never timed, encoding without a source. What an encoding
    with sources takes beyond its texts is theirs.
    """
    by_kind: dict[StepKind, list[Timed]] = {
        kind: [] for kind in (StepKind.ENCODE, StepKind.DENOISE, StepKind.DECODE)
    }
    sources: list[Timed] = []
    for each in timed:
        has_source = each.kind is StepKind.ENCODE and any(shape.has_source for shape in each.shapes)
        (sources if has_source else by_kind[each.kind]).append(each)
    if missing := [kind.value for kind, found in by_kind.items() if not found]:
        raise ValueError(f"nothing was timed of {', '.join(missing)}")
    text = _least_squares([_text_terms(each) for each in by_kind[StepKind.ENCODE]])
    decode = _least_squares([_pixel_terms(each) for each in by_kind[StepKind.DECODE]])
    source = _least_squares([_source_terms(each, text) for each in sources]) if sources else (0.0, 0.0)
    floor_s, step = _fit_step([each for each in by_kind[StepKind.DENOISE] if len(_sizes(each)) == 1])
    return CostTable(
        row_s=step[0],
        pair_s=step[1],
        step_fixed_s=step[2],
        step_floor_s=floor_s,
        mixing=_mixing(by_kind[StepKind.DENOISE]),
        text_row_s=text[0],
        text_fixed_s=text[1],
        decode_pixel_s=decode[0],
        decode_fixed_s=decode[1],
        source_pixel_s=source[0],
        source_fixed_s=source[1],
    )


def _mixing(timed: Sequence[Timed]) -> float:
    """Return what mixed steps take compared with steps of as many pictures of one of their sizes, on average.

    No formula is in between, so its errors do not look like a cost of mixing.
    """
    alike = {(each.shapes[0], len(each.shapes)): each.seconds for each in timed if len(_sizes(each)) == 1}
    ratios = []
    for each in timed:
        parts = [alike.get((shape, len(each.shapes))) for shape in each.shapes]
        known = [part for part in parts if part is not None]
        if len(_sizes(each)) > 1 and len(known) == len(parts):
            ratios.append(each.seconds / statistics.fmean(known))
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


Row = tuple[tuple[float, ...], float]  # the terms of the formula for one timing, and its seconds


def _fit_step(timed: Sequence[Timed]) -> tuple[float, tuple[float, ...]]:
    """Return the floor and (row, pair, fixed): whichever split into floor and slope fits best.

    Rows are never free, or a step could have any number of them: where no timing of more rows is longer, by
    noise or since the host's launches hide them, the largest step is taken to be nothing but rows.
    """
    rows = sorted((_step_terms(each) for each in timed), key=lambda row: row[1])
    best: tuple[float, float, tuple[float, ...]] | None = None
    for on_floor in range(max(1, len(rows) - 2)):
        floor_s = sum(seconds for _, seconds in rows[:on_floor]) / on_floor if on_floor else 0.0
        solution = _least_squares(rows[on_floor:])
        error = sum((max(floor_s, _dot(terms, solution)) / seconds - 1) ** 2 for terms, seconds in rows)
        if best is None or error < best[0] * 0.9 - 1e-12:  # a floor has to earn its place
            best = error, floor_s, solution
    assert best is not None, "the range above is never empty"
    _, floor_s, (row_s, pair_s, fixed_s) = best
    if row_s == pair_s == 0:
        terms, seconds = max(rows)
        return max(floor_s, fixed_s), (seconds / terms[0], 0.0, 0.0)
    return floor_s, (row_s, pair_s, fixed_s)


def _least_squares(rows: Sequence[Row]) -> tuple[float, ...]:
    """Minimise the squared relative errors with no coefficient below zero.

    With so few coefficients every choice of those that are not zero can be tried. Where several fit as well,
    as one timing allows, it is the slope that stays.
    """
    scaled = [tuple(term / seconds for term in terms) for terms, seconds in rows]
    width = len(scaled[0])
    best: tuple[float, tuple[float, ...]] | None = None
    for count in range(1, width + 1):
        for columns in itertools.combinations(range(width), count):
            found = _solve([tuple(terms[column] for column in columns) for terms in scaled])
            if found is None or min(found) < 0:
                continue
            solution = [0.0] * width
            for column, value in zip(columns, found, strict=True):
                solution[column] = value
            error = sum((_dot(terms, solution) - 1) ** 2 for terms in scaled)
            if best is None or error < best[0] - 1e-12:
                best = error, tuple(solution)
    assert best is not None, "one positive column always has a positive solution"
    return best[1]


def _solve(terms: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
    """Solve the normal equations of `terms @ x = 1` by Gauss-Jordan; None where they have no one solution."""
    width = len(terms[0])
    norms = [sum(row[column] ** 2 for row in terms) ** 0.5 for column in range(width)]
    if min(norms) == 0:
        return None
    unit = [[value / norm for value, norm in zip(row, norms, strict=True)] for row in terms]
    matrix = [
        [*(sum(row[i] * row[j] for row in unit) for j in range(width)), sum(row[i] for row in unit)]
        for i in range(width)
    ]
    for column in range(width):
        pivot = max(range(column, width), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        matrix[column] = [value / matrix[column][column] for value in matrix[column]]
        for row in range(width):
            if row != column:
                factor = matrix[row][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
    return tuple(matrix[column][width] / norms[column] for column in range(width))


def _dot(terms: Sequence[float], solution: Sequence[float]) -> float:
    return sum(term * value for term, value in zip(terms, solution, strict=True))


def _step_terms(timed: Timed) -> Row:
    rows = sum(shape.rows for shape in timed.shapes)
    pairs = sum(shape.passes * shape.pass_rows**2 for shape in timed.shapes)
    return (float(rows), float(pairs), 1.0), timed.seconds


def _text_terms(timed: Timed) -> Row:
    return (float(sum(shape.passes * shape.txt_rows for shape in timed.shapes)), 1.0), timed.seconds


def _pixel_terms(timed: Timed) -> Row:
    return (float(sum(shape.width * shape.height for shape in timed.shapes)), 1.0), timed.seconds


def _source_terms(timed: Timed, text: Sequence[float]) -> Row:
    terms, text_s = _pixel_terms(timed)[0], _dot(_text_terms(timed)[0], text)
    return terms, max(timed.seconds - text_s, LEAST_OF_SOURCE * timed.seconds)


def _sizes(timed: Timed) -> set[tuple[int, int]]:
    return {(shape.width, shape.height) for shape in timed.shapes}
