"""Test the charts of the report: their data, colours and descriptions."""

import re
from xml.etree import ElementTree

import pytest

from ossicle_lab.report.figures import COLOURS, ChartStyle, Line, Point, glyph, line_chart, thin_points
from ossicle_lab.report.token_map import token_map

SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure) -> ElementTree.Element:
    """Parse a figure; browsers know the namespaces without a declaration."""
    named = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return ElementTree.fromstring(str(figure).replace("<svg ", f"<svg {named} ", 1))


def test_points_are_where_their_values_are():
    line = Line("a <b>", 3, [Point(0, 0), Point(10, 60, 50, 70), Point(20, 100)])
    chart = ChartStyle("t & u", "x", [(0, "zero"), (20, "twenty")], (0, 100), markers=False)
    figure = parsed(line_chart([line], chart))
    groups = [group for group in figure.iter(f"{SVG}g") if group.get("class") == "line k3"]
    bar, curve = (re.findall(r"[ML] (\S+) (\S+)", group[0].get("d")) for group in groups)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in curve]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.01) and x0 < x2
    assert y0 - y1 == pytest.approx(0.6 * (y0 - y2), abs=0.01) and y2 < y0
    ends = sorted(float(y) for _, y in bar)
    assert ends == pytest.approx([y1 - (y0 - y2) / 10, y1 + (y0 - y2) / 10], abs=0.01)
    texts = ["".join(text.itertext()).strip() for text in figure.iter(f"{SVG}text")]
    assert {"zero", "twenty", "x"} <= set(texts)  # text stays text
    assert figure.find(f"{SVG}svg").get("aria-label") == "t & u. Lines: a <b>."


def test_all_colours_are_variables_of_the_page():
    lines = [Line(str(k), k, [Point(0, k), Point(1, k + 1)]) for k in range(COLOURS + 1)]
    text = str(line_chart(lines, ChartStyle("t", "x", label_lines=True, size=(720, 380))))
    assert set(re.findall(r"(?:fill|stroke): ?(#\w+)", text)) == set()
    assert {f"var(--k{k})" for k in range(COLOURS)} <= set(re.findall(r"var\(--\w+\)", text))
    assert not re.search(r' id="(figure|axes|line2d|text)_', text)  # would not be unique in a page


def test_lines_beyond_the_colours_repeat_them():
    assert 'class="line k1"' in line_chart([Line("a", 11, [Point(0, 1)])], ChartStyle("t", "x"))
    assert len({glyph(look) for look in range(7)}) == 7


def test_a_chart_without_points_is_an_error():
    with pytest.raises(ValueError, match="chart 't' has no points"):
        line_chart([Line("a", 0, [])], ChartStyle("t", "x"))


def test_thinning_keeps_the_last_point():
    points = [Point(i, i) for i in range(1000)]
    kept = thin_points(points, 100)
    assert (len(kept), kept[0], kept[-1]) == (101, points[0], points[-1])
    assert thin_points(points[:5], 100) == points[:5]


def test_token_maps_have_a_panel_for_each_layer():
    plan = [[1.0, 0, 0], [0.01, 0.3, 0.69]]
    record = {"text": "a b", "tokens": ["a", "<$b>"], "token_s": 0.2, "plans": {"0": plan, "4": plan}}
    figure = parsed(token_map("contr", record))
    assert len(list(figure.iter(f"{SVG}image"))) == 2
    texts = ["".join(text.itertext()).strip() for text in figure.iter(f"{SVG}text")]
    assert {"a", "<$b>", "layer 0", "layer 4", "time (s)"} <= set(texts)
    assert figure.find(f"{SVG}svg").get("aria-label") == "contr. Share of each text token's mass by time, layers 0, 4."
