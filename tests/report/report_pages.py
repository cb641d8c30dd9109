"""Reading a page back: balance of its tags, its words, links and pictures."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}
ADDRESSES = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}


class Page(HTMLParser):
    """The page's tags as it stands; `errors` are those that do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.attributes: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.words: list[str] = []
        self.cells: dict[str, list[list[str]]] = {}
        self._table = ""
        self.feed(text)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += found
        self.addresses += [value for name, value in found.items() if name in ADDRESSES]
        self.scripts += tag == "script"
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "img":
            self.images.append(found)
        if tag == "table":
            self._table = found["id"]
            self.cells[self._table] = []
        if tag == "tr":
            self.cells[self._table].append([])
        if tag in ("td", "th"):
            self.cells[self._table][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.errors.append(f"</{tag}> closes {self.open[-1:]} at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[self._table][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def pictures(page: Page) -> list[ET.Element]:
    """The page's pictures, parsed."""
    kind = "data:image/svg+xml;base64,"
    assert all(image["src"].startswith(kind) for image in page.images)
    return [ET.fromstring(base64.b64decode(image["src"].removeprefix(kind), validate=True)) for image in page.images]


def words_of(picture: ET.Element) -> list[str]:
    return ["".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")]
