"""The templates: every value is escaped, and an unknown name in a template is an error."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from fastapi import Request, status
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from halo_provider.ledger.delivery_records import duration
from halo_provider.ui import charts
from halo_provider.ui.queries import airflow_root, airflow_url, row_value, url


def page(request: Request, template: str, code: int = status.HTTP_200_OK, **values: Any) -> HTMLResponse:
    """Render a template as an HTML response."""
    root = request.scope["root_path"]

    def link(dag_id: str, name: str, query: Mapping[str, Any]) -> str:
        return url(root, dag_id, name, query)

    def airflow(*place: Any) -> str:
        return airflow_url(root, *place)

    html = (
        _environment()
        .get_template(template)
        .render(
            root=root,
            link=link,
            duration=duration,
            chart=charts,
            row_value=row_value,
            airflow=airflow,
            api=f"{airflow_root(root)}/api/v2",
            query=request.query_params,
            code=code,
            **values,
        )
    )
    return HTMLResponse(html, code)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("halo_provider.ui", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["timestamp"] = _timestamp
    environment.filters["breakable"] = _breakable
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    return environment


def _timestamp(value: datetime | None) -> Markup:
    """A time that the script turns into the person's own time zone; without the script it is UTC."""
    if value is None:
        return Markup()
    iso = value.isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{} UTC</time>').format(iso, iso, f"{value:%Y-%m-%d %H:%M:%S}")


def _breakable(text: str) -> Markup:
    """A long name that a narrow column breaks behind its punctuation, and not in the middle of a word."""
    return Markup(re.sub(r"([/_.:@+-]+)", r"\1<wbr>", str(escape(text))))  # noqa: S704 -- escaped before
