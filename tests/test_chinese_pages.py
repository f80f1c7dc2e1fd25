"""The Chinese pages hold what the English ones hold, part by part: headings, commands, tables, figures, links.

A part is a heading, a paragraph, a cell of a table, or a block of code. Its facts are what a translation leaves as it
is: code, numbers in digits, the targets of links (the Chinese page, where there is one). In a paragraph their order is
free. In blocks of code, comments may be translated, and so may what a tree of folders says beside its names.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from test_readme import slug

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(REPOSITORY) for folder in (".", "docs") for path in (REPOSITORY / folder).glob("*.zh-CN.md")
)
TREE = re.compile(r"\w+/\n")  # a block that begins with the name of a folder
COMMENT = re.compile(r"\s*# .*$", re.MULTILINE)
UNTRANSLATED = re.compile(r"(?:[a-z]+[ ,;]+){4}[a-z]+")  # five English words in a row


@dataclass(frozen=True)
class Part:
    """What it is, its words without code, and its facts."""

    kind: str
    text: str
    facts: list[str]


def english(page: Path) -> Path:
    """README.md of README.zh-CN.md."""
    return page.with_name(page.name.replace(".zh-CN", ""))


def read(page: Path) -> str:
    """The page without the line of languages under its title."""
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines(keepends=True)
    assert "简体中文" in lines[2], f"{page} has no links to its other language under the title"
    return "".join(lines[:2] + lines[3:])


def numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in re.findall(r"\d+(?:[.,]\d+)*", text)]


def code_facts(block: str) -> list[str]:
    if TREE.match(block):
        return re.findall(r"[\w.]+(?:\.py|/)", block, re.ASCII)
    comments = " ".join(COMMENT.findall(block))
    return [*COMMENT.sub(" #", block).splitlines(), *numbers(comments)]


def inline_facts(token: Token) -> Iterator[str]:
    for child in token.children or ():
        if child.type == "code_inline":
            yield f"`{child.content}`"
        elif child.type == "text":
            yield from numbers(child.content)
        elif child.type in ("link_open", "image"):
            yield f"]({unquote(str(child.attrs.get('href') or child.attrs['src']))})"
            yield from inline_facts(child)


def words(token: Token) -> str:
    return "".join(child.content if child.type in ("text", "image") else " " for child in token.children or ()).strip()


@functools.cache
def sections(text: str) -> list[list[Part]]:
    """The parts of a page, in order; a section begins with its heading."""
    found: list[list[Part]] = []
    for before, token in pairwise(MarkdownIt().enable("table").parse(text)):
        if token.type == "inline":
            kind = before.tag if before.type == "heading_open" else before.type.removesuffix("_open")
            if before.type == "heading_open":
                found.append([])
            found[-1].append(Part(kind, words(token), sorted(inline_facts(token))))
        elif token.type in ("fence", "code_block"):
            found[-1].append(Part(f"{token.type} {token.info}", "", code_facts(token.content)))
        elif token.type in ("bullet_list_open", "ordered_list_open", "list_item_open", "table_open", "tr_open"):
            found[-1].append(Part(token.type.removesuffix("_open"), "", []))
    return found


def anchors(page: Path) -> list[str]:
    return [slug(section[0].text) for section in sections(read(page))]


def chinese_link(fact: str, page: Path) -> str:
    """The fact of an English page as the Chinese page has it."""
    link = re.fullmatch(r"\]\((?!https?:)([^#]*)(?:#(.+))?\)", fact)
    target = page.parent / link[1] if link and link[1] else page
    chinese = target.with_suffix(".zh-CN.md")
    if link is None or not (REPOSITORY / chinese).exists():
        return fact
    place = dict(zip(anchors(target), anchors(chinese), strict=False)).get(link[2], link[2])
    return f"]({link[1].replace('.md', '.zh-CN.md')}{f'#{place}' if place else ''})"


def unequal(ours: list[str], theirs: list[str], ordered: bool) -> str:
    """What the Chinese page lacks and has beside the English one, or nothing."""
    lacks, more = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if lacks or more:
        return f"lacks {dict(lacks)}, has {dict(more)} instead"
    return "has another order" if ordered and ours != theirs else ""


def differences(page: Path, original: str, chinese: str) -> Iterator[str]:
    """A sentence for each place where the Chinese page does not hold what the English one holds."""
    pairs = list(zip_longest(sections(original), sections(chinese), fillvalue=[Part("", "no such section", [])]))
    for ours, theirs in pairs:
        where = f'{page}, section "{theirs[0].text}" (English: "{ours[0].text}"):'
        if problem := unequal([part.kind for part in ours], [part.kind for part in theirs], ordered=True):
            yield f"{where} {problem}"
            if len(sections(original)) != len(sections(chinese)):
                return  # the sections that follow are no pairs
            continue
        for our, their in zip(ours, theirs, strict=True):
            facts = [chinese_link(fact, english(page)) for fact in our.facts]
            if problem := unequal(facts, their.facts, ordered="fence" in our.kind or "code" in our.kind):
                yield f'{where} the {their.kind} "{their.text[:20]}" ("{our.text[:40]}") {problem}'
            if UNTRANSLATED.search(their.text):
                yield f'{where} the {their.kind} "{their.text[:40]}" is not translated'


def test_pages_for_readers_of_chinese_are_there():
    assert set(map(str, PAGES)) == {"README.zh-CN.md", "docs/own_data.zh-CN.md", "docs/train.zh-CN.md"}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_chinese_page_holds_what_the_english_holds(page: Path):
    found = list(differences(page, read(english(page)), read(page)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_languages_link_to_each_other(page: Path):
    lines = [(REPOSITORY / path).read_text(encoding="utf-8").splitlines()[2] for path in (english(page), page)]
    assert lines == [f"English | [简体中文]({page.name})", f"[English]({english(page).name}) | 简体中文"]


ENGLISH = """# Train

It takes 1,200 steps ([keys](own_data.md), `--resume`).

    python train.py --config-file a.yaml    # on 8 cards

## Results

| key | mIoU |
|---|---|
| `SEED`, the first | 44.5 |

- The error is 0.9, see [extending.md](extending.md).
"""
CHINESE = """# 训练

使用 `--resume`，共 1200 步（[键](own_data.zh-CN.md)）。

    python train.py --config-file a.yaml    # 在 8 张卡上

## 结果

| 键 | mIoU |
|---|---|
| `SEED`，第一个 | 44.5 |

- 误差为 0.9，见 [extending.md](extending.md)。
"""  # noqa: RUF001
CHANGES = {
    "heading": ("## Results", "### Results", "结果"),
    "new heading": ("## Results", "## More\n\n## Results", "结果"),
    "heading at the end": ("(extending.md).", "(extending.md).\n\n## More", "no such section"),
    "paragraph": ("\n    python", "\nNew.\n\n    python", "训练"),
    "item": ("- The error", "- New.\n- The error", "结果"),
    "command": ("a.yaml", "b.yaml", "训练"),
    "new command": ("    python", "    pip install .\n    python", "训练"),
    "number of a comment": ("8 cards", "4 cards", "训练"),
    "row": ("| `SEED`", "| `NEW` | 1 |\n| `SEED`", "结果"),
    "key of a cell": ("`SEED`", "`SEEDS`", "结果"),
    "figure of a cell": ("44.5", "44.6", "结果"),
    "figure": ("1,200", "1,300", "训练"),
    "option": ("--resume", "--again", "训练"),
    "link": ("](extending.md)", "](weights.md)", "结果"),
    "link to a page in Chinese": ("](own_data.md)", "](extending.md)", "训练"),
}


def test_pages_that_differ_by_language_alone_are_equal():
    assert not list(differences(Path("docs/train.zh-CN.md"), ENGLISH, CHINESE))


@pytest.mark.parametrize(("old", "new", "section"), CHANGES.values(), ids=CHANGES)
def test_change_of_the_english_page_alone_names_page_and_section(old: str, new: str, section: str):
    (sentence,) = differences(Path("docs/train.zh-CN.md"), ENGLISH.replace(old, new), CHINESE)
    assert sentence.startswith(f'docs/train.zh-CN.md, section "{section}"')


def test_order_of_commands_counts():
    pages = [f"# A\n\n    {block}\n" for block in ("cd a\n    make", "make\n    cd a")]
    (sentence,) = differences(Path("README.zh-CN.md"), *pages)
    assert "order" in sentence


def test_text_that_is_still_english_is_named():
    pages = [f"# A\n\n{text}\n" for text in ("It is a page.", "一页。 The loss is the median of all steps.")]
    (sentence,) = differences(Path("README.zh-CN.md"), *pages)
    assert 'section "A"' in sentence and "not translated" in sentence
