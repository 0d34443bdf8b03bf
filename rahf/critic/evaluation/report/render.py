"""Jinja templates of the HTML report: everything they print is escaped unless it is `Markup`."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
from markupsafe import Markup

from rahf.critic.evaluation.report.metrics import interval_text, number, plot


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rahf.critic.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval_text, "plot": plot}
    return environment


def render(template: str, **values: Any) -> Markup:
    """Renders a file of `templates/`.

    Args:
      template: name of the file.
      values: variables of the template.

    Raises:
      jinja2.UndefinedError: the template uses a variable that is not among `values`.
    """
    return Markup(_environment().get_template(template).render(values))
