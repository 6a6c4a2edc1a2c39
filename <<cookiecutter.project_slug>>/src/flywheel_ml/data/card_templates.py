"""Renders cards from the library's templates, which a project may extend."""

from pathlib import Path

import jinja2

from flywheel_ml.utils.errors import ConfigError


def render_template(template: Path, project: Path | None, **values: str) -> str:
    """Render a card as Markdown.

    Args:
        template: the library's. A project's template extends it as `library/<name>`.
        project: folder with a template of the same name; the library's own is rendered if there is none.
        values: variables of the template.

    Raises:
        ConfigError: the project's template is malformed or uses an unknown variable.
    """
    library = jinja2.FileSystemLoader(template.parent)
    loaders: list[jinja2.BaseLoader] = [jinja2.PrefixLoader({"library": library}), library]
    if project is not None:
        loaders.insert(0, jinja2.FileSystemLoader(project))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=False,  # noqa: S701 (Markdown, not HTML)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        text = environment.get_template(template.name).render(values)
    except jinja2.TemplateError as error:
        raise ConfigError(f"{project}/{template.name}: {error}") from None
    return text.rstrip("\n") + "\n"
