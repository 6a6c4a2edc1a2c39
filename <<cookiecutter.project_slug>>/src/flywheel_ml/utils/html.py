"""The HTML pages' templates: values are escaped, and an unknown variable is an error."""

from pathlib import Path

import jinja2


def open_templates(folder: Path) -> jinja2.Environment:
    """Return the templates in a folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
