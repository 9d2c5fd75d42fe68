"""Write the generated parts of the documentation, or with --check say which of them is not current.

docs/configuration.md comes from the docstrings under the fields of `prevue.config`, docs/cli.md from each command's own help. Only what
stands between `<!-- generated -->` and `<!-- end -->` is written; the rest of a page is somebody's prose.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from cyclopts import App
from rich.console import Console

from prevue import config
from prevue.cli import app

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- generated -->", "<!-- end -->"
HELP_COLUMNS = 110


def docstrings(struct: type) -> dict[str, str]:
    """Field → the docstring under it."""
    (node,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def type_name(kind: Any) -> str:
    """The type, for people."""
    options = [option for option in get_args(kind) if option is not type(None)]
    if type(None) in get_args(kind):
        return type_name(options[0])
    if get_origin(kind) is list:
        return "list of " + {str: "texts", int: "whole numbers"}[get_args(kind)[0]]
    if get_origin(kind) is dict:
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[kind]


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """The default as it would stand in a file."""
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "as `defaults`"
    return f"`{msgspec.json.encode(value).decode()}`" if value != "" else "empty"


def section(struct: type[msgspec.Struct], path: str) -> Iterator[str]:
    """A heading and a table for one group, then those below it."""
    yield f"## {path}\n"
    yield f"{inspect.getdoc(struct)}\n"
    texts = docstrings(struct)
    hints = get_type_hints(struct)
    below: list[tuple[type[msgspec.Struct], str]] = []
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            below.append((kind, f"{path}.{field.name}"))
            yield f"| `{field.name}` | group | | {texts[field.name]} See [{path}.{field.name}](#{path}{field.name}). |"
            continue
        yield f"| `{field.name}` | {type_name(kind)} | {default_of(field)} | {texts[field.name]} |".replace("  ", " ")
    yield ""
    for kind, name in below:
        yield from section(kind, name)


def configuration() -> str:
    """All settings."""
    lines: list[str] = []
    for name, kind in get_type_hints(config.Settings).items():
        if get_origin(kind) is list:
            lines += section(get_args(kind)[0], name)
        else:
            lines += section(kind, name)
    return "\n".join(lines).strip()


def commands(group: App, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command that does something, in the order in which they are listed."""
    for name in group:
        if name.startswith("-"):
            continue
        command = group[name]
        if any(not below.startswith("-") for below in command):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def cli() -> str:
    """Each command's own help."""
    lines: list[str] = []
    for words, _ in commands(app, ()):
        out = StringIO()
        console = Console(file=out, width=HELP_COLUMNS, force_terminal=False, color_system=None)
        app.help_formatter = "plain"
        app.help_print([*words], console=console)
        help_text = out.getvalue().split("\nSettings: --config")[0]
        lines += [f"## prevue {' '.join(words)}\n", "```text", *(line.rstrip() for line in help_text.strip().splitlines()), "```\n"]
    return "\n".join(lines).strip()


def main() -> int:
    """Write or check."""
    stale = []
    for name, make in (("configuration.md", configuration), ("cli.md", cli)):
        page = DOCS / name
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        tail = rest.partition(END)[2]
        current = f"{head}{BEGIN}\n\n{make()}\n\n{END}{tail}"
        if current != text:
            stale.append(f"docs/{name}")
            if "--check" not in sys.argv:
                page.write_text(current, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"not current: {', '.join(stale)}; `make docs` writes them\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
