"""A chart as SVG that stands inside the page and takes its text colour, fonts and anchors."""

import json
import re
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

# The converter resolves a relative link against a host of its own, and refuses unusual schemes. So a link goes
# through it as one to a host that cannot exist, and becomes an anchor of the page afterwards.
LINK_BASE = "https://anchor.invalid/"
# A link around a mark with its description; a title inside the link shows it under the pointer.
_DOT = re.compile(rf'<a xlink:href="{LINK_BASE}(?P<anchor>[^"]*)">(?P<mark><path aria-label="(?P<label>[^"]*)")')
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFont": _FONT, "titleFont": _FONT}
_LINES = {"gridColor": "currentColor", "gridOpacity": 0.12, "domainColor": "currentColor", "domainOpacity": 0.4}
_TICKS = {"tickColor": "currentColor", "tickOpacity": 0.4, "labelPadding": 5, "titlePadding": 8}
_PNG_SCALE = 2.0
_CONFIG: dict[str, Any] = {
    "view": {"stroke": None},
    "axis": {**_TEXT, **_LINES, **_TICKS, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "header": {**_TEXT, "labelAnchor": "start", "labelPadding": 8},
    # The page has the legends: how wide a name is, only the reader's browser knows.
    "legend": {"disable": True},
}


def to_svg(chart: alt.Chart | alt.LayerChart | alt.FacetChart, name: str) -> Markup:
    """Without namespaces or a fixed size; `LINK_BASE` links become anchors of the page.

    All text of the chart is escaped by the converter; what is marked as safe here is its own markup.
    """
    spec = {**chart.to_dict(), "background": "transparent", "padding": 4, "config": _CONFIG}
    text = vl_convert.vegalite_to_svg(spec)
    size = re.match(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"[^>]*>', text)
    if size is None:
        raise ValueError(f"the chart {name!r} was drawn without a size")
    opening = f'<svg class="chart {name}" style="max-width:{size[1]}px" viewBox="0 0 {size[1]} {size[2]}" role="img">'
    return Markup(opening + _DOT.sub(r'<a href="#\g<anchor>"><title>\g<label></title>\g<mark>', text[size.end() :]))


def to_png(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> bytes:
    """Black on white and with its legend, for a paper; links lead nowhere in a picture."""
    plain = json.loads(json.dumps(_CONFIG).replace("currentColor", "#222222"))
    plain["legend"] = {"title": None, "orient": "bottom", "labelFontSize": 12, "labelLimit": 400, "columns": 2}
    plain["legend"]["symbolOpacity"] = 1
    spec = {**chart.to_dict(), "background": "white", "padding": 12, "config": plain}
    return bytes(vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE))
