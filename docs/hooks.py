"""What the documentation is made of beside its Markdown: hooks of mkdocs.

- Notebooks become pages, from what is stored in them; nothing is executed.
- A link from a page to a file of the repository that is no page leads to a copy of the file in the site, highlighted
  where it is a text. So sources of pages have links that hold in a checkout, too.
- `<!-- hyperparameters: ppo -->` becomes the table of PPO's hyperparameters, from its config; `<!-- presets: ppo -->`
  that of its presets; `<!-- scores: ppo -->` its rows of the table on the page of benchmarks.
"""

import base64
import copy
import dataclasses
import html
import inspect
import json
import logging
import posixpath
import re
import textwrap
import typing
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

from rlcore.agents import AGENTS
from rlcore.agents.config import Range, choice_word, field_help, field_metadata, field_types, inner_type, is_optional
from rlcore.presets import all_presets

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
LINK = re.compile(r"(\]\(<?)(?![a-z]+:|[#/])([^)\s>#]+)")
LEXERS = {".py": "python", ".toml": "toml", ".h": "c", ".sh": "bash", ".cff": "yaml", ".cfg": "ini", ".md": "markdown"}
LOG = logging.getLogger("mkdocs.hooks.rlcore")
COPIED = (".json", ".png", ".gif", ".csv")


# Links out of the pages.


def goal_of(link, folder):
    """The path in the repository that a link from a file in `folder` of the repository has, None for that of a page."""
    path = posixpath.normpath(posixpath.join(folder, link))
    return None if path.startswith(("docs/pages", "..")) else path


def place_of(path):
    """Where the site has a file of the repository, as mkdocs names sources."""
    if path == "README.md":
        return "readme.md"
    if path.endswith(".ipynb"):
        return f"{path.removesuffix('.ipynb')}.md"
    return f"files/{path}" if path.endswith(COPIED) else f"files/{path}.md"


def relinked(text, folder, page):
    """The text of a file in `folder` of the repository, with links that hold on `page` of the site."""

    def relink(link):
        path = goal_of(link[2], folder)
        here = place_of(path) if path else posixpath.relpath(posixpath.join(folder, link[2]), "docs/pages")
        return link[1] + posixpath.relpath(here, posixpath.dirname(page))

    return LINK.sub(relink, text)


def linked_files(text, folder):
    """The files of the repository that a text links to, those aside that become pages."""
    goals = (goal_of(link[2], folder) for link in LINK.finditer(text))
    return {path for path in goals if path and not path.endswith(".ipynb") and path != "README.md"}


def shown_file(path):
    """A page with the text of a file of the repository."""
    text, lexer = (ROOT / path).read_text(), LEXERS.get(Path(path).suffix, "text")
    linenums = ' linenums="1"' if lexer == "python" else ""
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~~~ {{.{lexer}{linenums}}}\n{text}\n~~~~~~\n"


# Notebooks.


def page_of(path):
    """A notebook as Markdown, and its pictures by name."""
    pictures, text = {}, []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text.append(relinked(source, "notebooks", f"notebooks/{path.stem}.md"))
            continue
        shown = [fenced(source, "python"), *(output_of(x, path.stem, pictures) for x in cell["outputs"])]
        cell_text = "\n\n".join(filter(None, shown))
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell_text = '??? example "Solution"\n\n' + textwrap.indent(cell_text, "    ")
        text.append(cell_text)
    return "\n\n".join(text) + "\n", pictures


def fenced(text, lexer):
    return f"~~~~~~ {lexer}\n{text.rstrip()}\n~~~~~~"


def output_of(output, stem, pictures):
    """What a cell put out, as Markdown; its pictures are added to `pictures`."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        alt = output["metadata"].get("image/png", {}).get("alt", "")
        return picture(data["image/png"], "png", html.escape(alt), stem, pictures)
    if "text/html" in data:
        found = re.search(r'alt="([^"]*)" src="data:image/gif;base64,([^"]+)"', data["text/html"])
        if found:
            return picture(found[2], "gif", found[1], stem, pictures)
        return f'<div class="shown">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return data["text/markdown"]
    text = "".join(output.get("text", "")) or data.get("text/plain", "")
    return f'<div class="output" markdown="1">\n\n{fenced(text, "text")}\n\n</div>'


def picture(data, kind, alt, stem, pictures):
    """A picture with its text for those who do not see it; as HTML, since that text is no Markdown."""
    name = f"{stem}_{len(pictures) + 1}.{kind}"
    pictures[name] = base64.b64decode(data)
    return f'<div class="picture"><img alt="{alt}" src="{name}"></div>'


# Tables.


def hyperparameters(algo):
    """A table of what the algorithm declares itself, and a closed one of what all have, with its defaults."""
    config = AGENTS[algo].Config
    fields = [field.name for field in dataclasses.fields(config)]
    own = [name for name in inspect.get_annotations(config) if name in fields]
    rest = [name for name in fields if name not in own]
    table = textwrap.indent(hyperparameter_table(config, rest), "    ")
    return f'{hyperparameter_table(config, own)}\n\n??? note "What every agent has"\n\n{table}'


def hyperparameter_table(config, names):
    helps, fields = field_help(config), {field.name: field for field in dataclasses.fields(config)}
    rows = ["| hyperparameter | default | range | meaning |", "| --- | --- | --- | --- |"]
    for name in names:
        default = f"`{word(fields[name].default)}`"
        rows.append(
            f"| `{name}` | {default} | {allowed(config, name)} | {helps.get(name, '')} |".replace(" | |", " | \\| |")
        )
    return "\n".join(rows)


def word(value):
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(word, value))
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(choice_word(value))


def allowed(config, name):
    """What values a hyperparameter may have, in words."""
    kind, base = field_types(config)[name], inner_type(field_types(config)[name])
    bounds = next((mark for mark in field_metadata(config)[name] if isinstance(mark, Range)), None)
    if typing.get_origin(base) is typing.Literal:
        text = ", ".join(f"`{word(choice)}`" for choice in typing.get_args(base))
    elif base is bool:
        text = "`true`, `false`"
    elif base is str:
        text = "a text"
    else:
        number = {int: "integer", float: ""}.get(base, "integers")
        text = f"{number} {span(bounds)}".strip() if bounds else number or "any number"
    return f"{text}, or `none`" if is_optional(kind) else text


def span(bounds):
    low = f"{'≥' if bounds.closed else '>'} {bounds.low:g}"
    if bounds.high >= 2**31 - 1:
        return low
    return f"{bounds.low:g} to {bounds.high:g}" if bounds.closed else f"{low}, ≤ {bounds.high:g}"


def presets(algo):
    rows = ["| environment | steps | values |", "| --- | --- | --- |"]
    for env_id, values in copy.deepcopy(all_presets()[algo]).items():
        rest = ", ".join(
            f"`{name} = {word(tuple(x) if isinstance(x, list) else x)}`"
            for name, x in values.items()
            if name != "total_steps"
        )
        rows.append(f"| `{env_id}` | {values.get('total_steps', 0):,} | {rest} |")
    return "\n".join(rows)


def scores(algo):
    """The algorithm's rows of the table of scores, and what the columns are."""
    text = (PAGES / "benchmarks.md").read_text().split("## Scores on classic control", 1)[1].split("\n## ", 1)[0]
    table = [line for line in text.splitlines() if line.startswith("|")]
    rows = [line for line in table[2:] if line.split("|")[2].strip() == algo]
    if not rows:
        raise ValueError(f"the page of benchmarks has no scores of {algo}")
    return relinked("\n".join([*table[:2], *rows]), "docs/pages", "algorithms/x.md")


def include(path):
    """The text of a file of the repository as code."""
    return fenced((ROOT / path).read_text(), LEXERS[Path(path).suffix])


MADE = {"include": include, "hyperparameters": hyperparameters, "presets": presets, "scores": scores}


def with_tables(text):
    return re.sub(
        r"<!-- (\w+): ([\w./]+) -->", lambda mark: MADE[mark[1]](mark[2]) if mark[1] in MADE else mark[0], text
    )


# What mkdocs calls.


def on_files(files, config):
    texts = {file.src_uri: file.content_string for file in files if file.is_documentation_page()}
    linked = {
        path for page, text in texts.items() for path in linked_files(text, posixpath.dirname(f"docs/pages/{page}"))
    }
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = page_of(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
        source = "\n".join(
            "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown"
        )
        linked |= linked_files(source, "notebooks")
    readme = (ROOT / "README.md").read_text()
    linked |= linked_files(readme, "")
    text = f"---\nsearch:\n  exclude: true\n---\n\n{relinked(readme, '', 'readme.md')}"
    files.append(File.generated(config, "readme.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    for path in sorted(linked):
        if not (ROOT / path).is_file():
            LOG.warning("a page links to %s, which is no file", path)
            continue
        place = place_of(path)
        if path.endswith(COPIED):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, place, content=shown_file(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown, page, **_):
    if page.file.generated_by:  # above
        return markdown
    folder = posixpath.dirname(f"docs/pages/{page.file.src_uri}")
    return with_tables(relinked(markdown, folder, page.file.src_uri))
