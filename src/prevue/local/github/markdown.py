"""The part of GitHub's Markdown that comments use here, as HTML that is safe to show.

Everything is escaped first and only then given meaning, so no tag and no attribute of the text survives; the one
exception are bare `<details>` and `<summary>` tags. HTML comments (hidden markers) are left out, as on GitHub. Links go
to http and https only. It is a reader for people, not a Markdown library: nested lists and HTML stay text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_ITEM = re.compile(r"\s*(?:[-*+]|(\d+)[.)])\s+(.*)$")
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,})$")
_TABLE_LINE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_FENCE = re.compile(r"\s*(```+|~~~+)\s*(\w*)")
_FOLD = re.compile(r"&lt;(/?(?:details|summary)|details open)&gt;")
_CODE = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"\[([^\]]+)\]\((https?://[^\s)]+)\)")
_BARE_LINK = re.compile(r"(?<![\"'>=\w])(https?://[^\s<>]*[^\s<>.,;:!?)\]'\"*])")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_ITALIC = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_]+?)(?<=\S)\1(?![\w*])")
_STRUCK = re.compile(r"~~(?=\S)(.+?)(?<=\S)~~")


def render(text: str) -> str:
    """Return the HTML of a comment's Markdown."""
    lines = _COMMENT.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(_blocks(lines))


def _blocks(lines: list[str]) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif fence := _FENCE.match(line):
            at = _code_block(lines, at, fence[1], out)
        elif heading := _HEADING.match(line):
            level = len(heading[1])
            out.append(f"<h{level}>{inline(heading[2])}</h{level}>")
            at += 1
        elif _RULE.match(line):
            out.append("<hr>")
            at += 1
        elif "|" in line and at + 1 < len(lines) and "|" in lines[at + 1] and _TABLE_LINE.match(lines[at + 1]):
            at = _table(lines, at, out)
        elif line.lstrip().startswith(">"):
            quoted, at = _take(lines, at, lambda text: text.lstrip().startswith(">"))
            inner = [text.lstrip()[1:].removeprefix(" ") for text in quoted]
            out.append(f"<blockquote>{''.join(_blocks(inner))}</blockquote>")
        elif _ITEM.match(line):
            at = _list(lines, at, out)
        elif re.match(r"\s*</?(details|summary)\b", line):
            out.append(inline(line))
            at += 1
        else:
            paragraph, at = _take(lines, at, _is_plain)
            if not paragraph:  # a line that begins like a block and is none
                paragraph, at = [line], at + 1
            out.append("<p>" + "<br>\n".join(inline(text) for text in paragraph) + "</p>")
    return out


def _is_plain(line: str) -> bool:
    starts = (_HEADING, _FENCE, _ITEM, _RULE)
    stripped = line.lstrip()
    return (
        bool(stripped)
        and not stripped.startswith((">", "<details", "</details", "<summary"))
        and not any(start.match(line) for start in starts)
    )


def _take(lines: list[str], at: int, wanted: Callable[[str], bool]) -> tuple[list[str], int]:
    end = at
    while end < len(lines) and wanted(lines[end]):
        end += 1
    return lines[at:end], end


def _code_block(lines: list[str], at: int, fence: str, out: list[str]) -> int:
    body, end = _take(lines, at + 1, lambda text: not text.strip().startswith(fence))
    out.append(f"<pre><code>{html.escape(chr(10).join(body))}</code></pre>")
    return end + 1


def _list(lines: list[str], at: int, out: list[str]) -> int:
    first = _ITEM.match(lines[at])
    tag = "ol" if first and first[1] else "ul"
    items: list[str] = []
    while at < len(lines) and lines[at].strip():
        if match := _ITEM.match(lines[at]):
            items.append(match[2])
        elif items and lines[at].startswith("  "):
            items[-1] += "\n" + lines[at].strip()
        else:
            break
        at += 1
    out.append(f"<{tag}>{''.join(f'<li>{_item(item)}</li>' for item in items)}</{tag}>")
    return at


def _item(text: str) -> str:
    for mark, checked in (("[ ] ", ""), ("[x] ", " checked"), ("[X] ", " checked")):
        if text.startswith(mark):
            return f'<input type="checkbox" disabled{checked}> {inline(text[4:])}'
    return inline(text)


def _table(lines: list[str], at: int, out: list[str]) -> int:
    titles = _cells(lines[at])
    row = "".join(f"<th>{inline(title)}</th>" for title in titles)
    head = f"<thead><tr>{row}</tr></thead>" if any(titles) else ""
    rows, end = _take(lines, at + 2, lambda text: "|" in text)
    body = "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in rows)
    out.append(f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>')
    return end


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def inline(text: str) -> str:
    """Return the HTML of text within a line: code, links, bold, italic, struck out."""
    kept: list[str] = []

    def keep(rendered: str) -> str:
        kept.append(rendered)
        return f"\x00{len(kept) - 1}\x00"

    def link(match: re.Match[str]) -> str:
        return keep(f'<a href="{match[2]}" rel="nofollow noopener">') + match[1] + keep("</a>")

    text = html.escape(text.replace("\x00", ""))
    text = _CODE.sub(lambda match: keep(f"<code>{match[2].strip()}</code>"), text)
    text = _LINK.sub(link, text)
    text = _BARE_LINK.sub(lambda match: keep(f'<a href="{match[1]}" rel="nofollow noopener">{match[1]}</a>'), text)
    text = _BOLD.sub(r"<strong>\2</strong>", text)
    text = _ITALIC.sub(r"<em>\2</em>", text)
    text = _STRUCK.sub(r"<del>\1</del>", text)
    text = _FOLD.sub(r"<\1>", text)
    while "\x00" in text:  # kept pieces may hold kept pieces: code inside a link's text
        text = re.sub(r"\x00(\d+)\x00", lambda match: kept[int(match[1])], text)
    return text.replace("\n", "<br>")
