"""The plot of a search: who is on the front, and that everything is inside the picture and legible."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from hlt_train.report.front import HEIGHT, WIDTH, Point, front, front_svg

POINTS = [
    Point(80.0, 0.81, 0.01, True, 3, True),
    Point(55.0, 0.78, 0.01, True, 7, True),
    Point(95.0, 0.80, 0.01, True, 4, True),
    Point(30.0, 0.6, 0.02, False, 1, False),
]


def test_front() -> None:
    assert front([(p.cost, p.value) for p in POINTS]) == [True, True, False, True]
    assert front([(1.0, 0.5), (1.0, 0.5)]) == [True, True]  # equals do not beat each other
    assert front([(1.0, 0.5), (1.0, 0.6), (2.0, 0.6)]) == [False, True, False]
    assert front([]) == []


def test_the_picture() -> None:
    text = front_svg(POINTS, {"teacher": 0.83, "reference cut & more": 0.48, "near": 0.479}, 100.0, 3, "time of a call [ns]", "efficiency < 1")
    root = ET.fromstring(text)
    words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"limit", "teacher 0.830", "reference cut & more 0.480", "near 0.479", "time of a call [ns]", "efficiency < 1", "3", "7", "4"} <= set(words)
    assert "1" not in words  # only those that were trained to the end are named
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == len(POINTS) + 1 + 2  # the ring, and the key
    for one in root.iter():
        for name, size in (("cx", WIDTH), ("x", WIDTH), ("cy", HEIGHT), ("y", HEIGHT)):
            if name in one.attrib:
                assert 0 <= float(one.attrib[name]) <= size
    heights = sorted(float(one.attrib["y"]) for one in root.iter("{http://www.w3.org/2000/svg}text") if re.match(r"(teacher|reference|near)", one.text or ""))
    assert min(b - a for a, b in pairwise(heights)) >= 15  # labels of lines that nearly coincide stand apart


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-4])
def test_one_point_alone(value: float) -> None:
    root = ET.fromstring(front_svg([Point(10.0, value, 0.0, True, 0, True)], {}, 10.0, 0, "LUTs", "efficiency"))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4
