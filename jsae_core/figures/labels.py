"""Labels of marks in a panel, placed so that they cover no mark, no line and no other label.

Here: finding a free place among several. Not here: which marks get which label. All coordinates are in px from the
panel's lower left corner; a box is (left, right, bottom, top).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jsae_core.figures.style import FONT_SIZE

SMALL = FONT_SIZE - 2
CHARACTER, AROUND = 0.56 * SMALL, 4  # px: the width of a digit, and the free space kept around a label


class Place(NamedTuple):
    """A possible place of a label: its box, points on the line that leads to it, and its position in Plotly's terms."""

    left: float
    right: float
    bottom: float
    top: float
    position: str | tuple[float, float]
    leader: np.ndarray = np.empty((0, 2))


class Room:
    """The free space of a panel.

    Args:
        size: width and height of the panel.
        marks, lines: boxes [n, 4] around the marks and lines that labels may not cover.
    """

    def __init__(self, size: tuple[float, float], marks: np.ndarray, lines: np.ndarray):
        self.size, self.marks, self.lines = size, marks, lines

    def first_free(self, places: Iterator[Place]) -> str | tuple[float, float] | None:
        """Occupy the first place that covers nothing, and return its position in Plotly's terms; None if there is none.
        The line that leads to the place may cross lines, but not marks or labels, from which it would seem to come."""
        for place in places:
            box, leader = np.array([place[:4]]), boxes(place.leader, 1)
            width, height = self.size
            inside = 0 <= place.left and place.right <= width and 0 <= place.bottom and place.top <= height
            pairs = ((box, self.marks), (box, self.lines), (leader, self.marks))
            if inside and not any(_overlap(some, others) for some, others in pairs):
                self.marks = np.concatenate([self.marks, box + [-AROUND, AROUND, -AROUND, AROUND]])
                self.lines = np.concatenate([self.lines, leader])
                return place.position
        return None


def _overlap(some: np.ndarray, others: np.ndarray) -> bool:
    left, right, bottom, top = some.T[:, :, None]
    others_left, others_right, others_bottom, others_top = others.T
    apart = (right <= others_left) | (others_right <= left) | (top <= others_bottom) | (others_top <= bottom)
    return not apart.all()


def boxes(points: np.ndarray, reach: float) -> np.ndarray:
    """A box around each point [n, 2]."""
    return (points[:, [0, 0, 1, 1]] + [-reach, reach, -reach, reach]).reshape(-1, 4)


def along(points: np.ndarray) -> np.ndarray:
    """Points every few px along the lines that join the given points; NaN marks a gap in the line."""
    steps = np.linspace(0, 1, 200)[:, None, None]
    between = (points[:-1] + steps * (points[1:] - points[:-1])).reshape(-1, 2)
    return between[~np.isnan(between).any(axis=1)]


def beside(mark: np.ndarray, size: float, characters: int) -> Iterator[Place]:
    """The places beside a marker that Plotly's text positions can have."""
    away = 0.625 * size + 1  # the distance that Plotly uses
    width = CHARACTER * characters
    for down, across in ((0, 1), (0, -1), (-1, 0), (1, 0), (-1, 1), (1, 1), (-1, -1), (1, -1)):
        left = mark[0] + {1: away, 0: -width / 2, -1: -away - width}[across]
        bottom = mark[1] + {-1: away, 0: -SMALL / 2, 1: -away - SMALL}[down]
        position = f"{('top', 'middle', 'bottom')[down + 1]} {('left', 'center', 'right')[across + 1]}"
        yield Place(left, left + width, bottom, bottom + SMALL, position)


def around(ring: np.ndarray, diameter: int, characters: int) -> Iterator[Place]:
    """Places around a ring at growing distance, with a line from the ring to the label. Their position is the offset
    from the ring in px, y downwards."""
    width, height = CHARACTER * characters, 1.4 * SMALL
    for distance in range(diameter, 8 * diameter, 10):
        for angle in np.radians(range(-45, 315, 15)):
            right, up = (distance + width / 2) * np.cos(angle), distance * np.sin(angle)
            x, y = ring + [right, up]
            leader = ring + np.linspace(0, 1, 30)[:, None] * [right, up]
            away = np.hypot(*(leader - ring).T) > 0.75 * diameter
            yield Place(x - width / 2, x + width / 2, y - height / 2, y + height / 2, (right, -up), leader[away])
