"""Charts as SVG."""

import math
import re
from xml.etree import ElementTree

import pytest

from vcd_core import charts

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ElementTree.fromstring(svg)


def points_of(svg, number=0):
    line = parsed(svg).findall(f"{NAMESPACE}polyline")[number]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_a_straight_line_is_straight_and_stands_where_the_ticks_say():
    svg = charts.lines({"a": [(0, 0.0), (5, 5.0), (10, 10.0)]}, low=0)
    (left, bottom), (middle, half), (right, top) = points_of(svg)
    assert middle == pytest.approx((left + right) / 2, abs=0.11)
    assert half == pytest.approx((bottom + top) / 2, abs=0.11)
    labels = {t.text: float(t.get("y")) for t in parsed(svg).iter(f"{NAMESPACE}text") if t.get("text-anchor") == "end"}
    assert labels["10"] == pytest.approx(top + 4, abs=0.11)
    assert labels["0"] == pytest.approx(bottom + 4, abs=0.11)


def test_a_logarithmic_axis_is_even_in_ratios():
    places = points_of(charts.lines({"a": [(1, 1), (10, 1.5), (100, 2)]}, log=True))
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.11)


def test_what_is_not_finite_is_left_out_and_nothing_is_no_error():
    svg = charts.lines({"a": [(0, 1.0), (1, math.nan), (2, 2.0)], "b": [(0, math.inf)]})
    assert len(points_of(svg)) == 2
    assert svg.count("<polyline") == 1
    assert parsed(charts.lines({})) is not None
    assert parsed(charts.intervals({})) is not None
    assert "nan" not in charts.intervals({"a": (math.nan, math.nan, math.nan), "b": (1.0, math.nan, math.nan)})


def test_names_are_text_and_nothing_else():
    name = '</text><script>alert("x")</script>&'
    for svg in (
        charts.lines({name: [(0, 1), (1, 2)]}, name, name),
        charts.intervals({name: (1.0, 0.5, 1.5)}, name, name),
    ):
        assert not list(parsed(svg).iter(f"{NAMESPACE}script"))
        assert {element.text for element in parsed(svg).iter(f"{NAMESPACE}text")} >= {name}


def test_an_interval_reaches_from_its_low_to_its_high():
    svg = charts.intervals({"a": (0.0, -1.0, 1.0), "b": (1.0, 1.0, 1.0)})
    first, second = parsed(svg).findall(f"{NAMESPACE}circle")
    bar = next(line for line in parsed(svg).findall(f"{NAMESPACE}line") if line.get("stroke-width"))
    assert float(bar.get("x1")) + float(bar.get("x2")) == pytest.approx(2 * float(first.get("cx")), abs=0.11)
    assert float(bar.get("x2")) == pytest.approx(float(second.get("cx")), abs=0.11)
    assert float(first.get("cy")) < float(second.get("cy"))


@pytest.mark.parametrize(("low", "high"), [(0, 1e-9), (-3.7, 12), (1e6, 1.1e6), (5, 5), (-1e-3, 0)])
def test_ticks_are_round_and_cover_the_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 8
    assert all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", charts.number(tick)) for tick in ticks)
