"""The local GitHub's Markdown: the subset that comments use, and nothing that could do harm."""

from __future__ import annotations

import pytest

from prevue.local.github.avatar import avatar
from prevue.local.github.markdown import render


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "<p>plain</p>"),
        ("one\ntwo", "<p>one<br>\ntwo</p>"),
        ("## Ready ##", "<h2>Ready</h2>"),
        ("**bold** and *thin* and ~~gone~~", "<p><strong>bold</strong> and <em>thin</em> and <del>gone</del></p>"),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        ("`a < **b**`", "<p><code>a &lt; **b**</code></p>"),
        ("```sh\nmake <demo>\n\n```\nafter", "<pre><code>make &lt;demo&gt;\n</code></pre>\n<p>after</p>"),
        ("- one\n- two\n  more", "<ul><li>one</li><li>two<br>more</li></ul>"),
        ("1. one\n2. two", "<ol><li>one</li><li>two</li></ol>"),
        ("- [x] done", '<ul><li><input type="checkbox" disabled checked> done</li></ul>'),
        ("> quoted\n> still", "<blockquote><p>quoted<br>\nstill</p></blockquote>"),
        ("---", "<hr>"),
        ("<!-- marker: {} -->hello<!-- open", "<p>hello</p>"),
        (
            "[the page](https://a.example/b?c=1&d=2)",
            '<p><a href="https://a.example/b?c=1&amp;d=2" rel="nofollow noopener">the page</a></p>',
        ),
        ("see https://a.example/b.", '<p>see <a href="https://a.example/b" rel="nofollow noopener">https://a.example/b</a>.</p>'),
        ("**http://a.example/**", '<p><strong><a href="http://a.example/" rel="nofollow noopener">http://a.example/</a></strong></p>'),
        ("[`code`](https://a.example)", '<p><a href="https://a.example" rel="nofollow noopener"><code>code</code></a></p>'),
        ("<details><summary>More</summary>\n\ntext\n\n</details>", "<details><summary>More</summary>\n<p>text</p>\n</details>"),
    ],
)
def test_markdown_that_comments_use(text: str, html: str) -> None:
    assert render(text) == html


def test_table_has_a_head_only_when_it_says_something() -> None:
    assert "<thead><tr><th>A</th><th>B</th></tr></thead>" in render("| A | B |\n|---|:-:|\n| 1 | 2 |")
    assert render("| | |\n|---|---|\n| 1 | 2 |") == ('<div class="table"><table><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>')


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        '<img src=x onerror="alert(1)">',
        '<details open onclick="alert(1)">',
        '[x](https://a.example/"onmouseover="alert(1))',
        "https://a.example/'\"><script>",
        "\x000\x00 <b>",
        "`\x005\x00`",
    ],
)
def test_markdown_lets_no_markup_of_the_text_through(text: str) -> None:
    html = render(text)
    for allowed in ("<p>", "</p>", "<code>", "</code>", "</a>", "<br>"):
        html = html.replace(allowed, "")
    rest = html.split("<")[1:]
    assert all(tag.startswith('a href="http') and '"' not in tag.split('"', 2)[1] for tag in rest)
    assert all(tag.split('"')[2].startswith(" rel=") for tag in rest)


def test_avatar_is_the_same_for_the_same_login() -> None:
    assert avatar("Writer") == avatar("writer")
    assert avatar("writer") != avatar("reader")
