"""Pictures for accounts: a small symmetric pattern from the login, as SVG, so that no page needs the network.

A bot's is light on dark, a person's dark on light.
"""

from __future__ import annotations

import hashlib

_CELLS = 5
_UNIT = 10


def avatar(login: str) -> str:
    """Return an SVG picture, always the same for the same login."""
    digest = hashlib.sha256(login.lower().encode()).digest()
    hue = int.from_bytes(digest[:2], "big") % 360
    side = (_CELLS + 2) * _UNIT
    half = _CELLS // 2 + 1
    filled = {(row, column) for row in range(_CELLS) for column in range(half) if digest[2 + row * 3 + column] % 2}
    filled |= {(row, _CELLS - 1 - column) for row, column in filled}
    cells = "".join(
        f'<rect x="{(column + 1) * _UNIT}" y="{(row + 1) * _UNIT}" width="{_UNIT}" height="{_UNIT}"/>' for row, column in sorted(filled)
    )
    ground, figure = f"hsl({hue} 45% 92%)", f"hsl({hue} 55% 45%)"
    if login.endswith("[bot]"):
        ground, figure = figure, ground
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" shape-rendering="crispEdges">'
        f'<rect width="{side}" height="{side}" fill="{ground}"/>'
        f'<g fill="{figure}">{cells}</g></svg>'
    )
