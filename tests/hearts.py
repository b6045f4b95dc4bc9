"""Masks drawn by hand, whose measures are known."""

import math

import numpy as np


def ellipse(radii, centre=(32, 32), turn=0.0, size=64):
    """The pixels inside an ellipse: radii (a, b) along an axis turned from x, centre (x, y)."""
    y, x = np.mgrid[:size, :size]
    along = (x - centre[0]) * math.cos(turn) + (y - centre[1]) * math.sin(turn)
    across = (y - centre[1]) * math.cos(turn) - (x - centre[0]) * math.sin(turn)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1


def ring(inner, outer, offset=0.0, centre=(32, 32), turn=0.0, size=64):
    """A cavity of radii `inner` in a wall up to radii `outer`, shifted in it by `offset` along its axis."""
    shifted = centre[0] + offset * math.cos(turn), centre[1] + offset * math.sin(turn)
    mask = np.zeros((size, size), np.uint8)
    mask[ellipse(outer, centre, turn, size)] = 2
    mask[ellipse(inner, shifted, turn, size)] = 3
    return mask


def heart():
    """A ring of 20 and 12 pixels with a right ventricle on its left."""
    mask = ring((12, 12), (20, 20), centre=(38, 32))
    mask[ellipse((16, 16), (16, 32)) & (mask == 0)] = 1
    return mask
