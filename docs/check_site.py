"""Whether the built site holds together: every link and picture leads somewhere, and nothing is loaded from elsewhere.

python docs/check_site.py site
"""

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}  # by the page itself
NOT_LOADED = {"canonical", "prev", "next", "alternate", "edit"}  # kinds of <link> that only name a page


class Page(HTMLParser):
    """The ids of a page, and what it links to and loads, as (tag, target)."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        only_names = tag == "link" and bool(NOT_LOADED & set(values.get("rel", "").split()))
        name = "href" if tag == "a" else LOADED.get(tag)
        if name in values and not only_names:
            self.targets.append((tag, values[name]))


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def problems(site: Path) -> Iterator[str]:
    """A sentence for each link that leads nowhere, and for each thing that comes from another place."""
    for path in sorted(site.rglob("*.html")):
        for tag, target in page(path).targets:
            where, parts = path.relative_to(site).as_posix(), urlsplit(target)
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                if tag != "a":
                    yield f"{where} loads {target}"
                continue
            root = site if parts.path.startswith("/") else path.parent
            goal = (root / unquote(parts.path).lstrip("/")).resolve() if parts.path else path.resolve()
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.is_file():
                yield f"{where} leads to {target}, which is not there"
            elif parts.fragment and goal.suffix == ".html" and unquote(parts.fragment) not in page(goal).ids:
                yield f"{where} leads to {target}, where that place is not"


def main(folder: str) -> int:
    site = Path(folder).resolve()
    found = list(problems(site))
    print(*found, sep="\n") if found else print(f"{len(list(site.rglob('*.html')))} pages: all links lead somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
