# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The report in a real browser: it works by mouse, by keys, and without."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Iterator

import pytest

pytest.importorskip('pandas')
pytest.importorskip('scikit_posthocs')
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')
pytest.importorskip('playwright')

from playwright.sync_api import sync_playwright
from synthetic import HOSTILE, four_tasks, hostile

from lt_losses_mm.sweeps.report import write_report

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            ('chromium', 'chromium-browser', 'google-chrome', 'chrome'),
        ),
    ),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason='no Chromium: apt-get install chromium'
    ),
]
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope='module')
def reports(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('report')
    found = {}
    for make in (four_tasks, hostile):
        path: Path = folder / f'{make.__name__}.html'
        write_report(make(), path, None)
        found[make.__name__] = path.as_uri()
    return found


@pytest.fixture(scope='module')
def browser() -> Iterator:
    with sync_playwright() as driver:
        # A container has no user namespaces for the sandbox.
        one = driver.chromium.launch(
            executable_path=CHROMIUM, args=['--no-sandbox']
        )
        yield one
        one.close()


@pytest.fixture
def open_page(browser, reports) -> Iterator:
    """Open a report; whatever the console or a dialog says is an error."""
    contexts, said = [], []

    def opened(name: str, size=DESKTOP, script: str = '', **options):
        context = browser.new_context(
            viewport=dict(width=size[0], height=size[1]), **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('dialog', lambda dialog: said.append(dialog.message))
        page.on(
            'request',
            lambda r: r.url.startswith('file:') or said.append(r.url),
        )
        if script:
            page.add_init_script(script)
        page.goto(reports[name])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def column(page, table: str, index: int) -> list[str]:
    """The cells of a column in their order; hidden rows are left out."""
    return page.eval_on_selector_all(
        f'#{table} tbody tr:not([hidden])',
        f'rows => rows.map(row => row.cells[{index}].textContent)',
    )


@pytest.mark.parametrize('name', ['four_tasks', 'hostile'])
@pytest.mark.parametrize('size', [DESKTOP, PHONE])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits(open_page, name, size, scheme) -> None:
    page = open_page(name, size, color_scheme=scheme)
    assert page.title() == 'Report of a sweep'
    for details in page.locator('summary').all():
        details.click()
    wide = page.evaluate('document.documentElement.scrollWidth')
    assert wide <= size[0]
    # The first value of a leaderboard is seen without scrolling.
    first = page.locator('#board0 tbody td').first.bounding_box()
    assert first['x'] + first['width'] <= size[0]
    # Nothing but the boxes of tables is wider than the page.
    outside = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e =>
            !e.closest('.box') && !e.closest('svg') && !e.closest('.skip')
            && e.getBoundingClientRect().right > innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_sort_by_mouse_and_by_key(open_page) -> None:
    page = open_page('four_tasks')
    header = page.locator('#board1 thead th').nth(1)
    header.get_by_role('button').click()
    assert header.get_attribute('aria-sort') == 'descending'
    found = [float(x.split()[0]) for x in column(page, 'board1', 1)]
    assert found == sorted(found, reverse=True)
    header.get_by_role('button').focus()
    page.keyboard.press('Enter')
    assert header.get_attribute('aria-sort') == 'ascending'
    found = [float(x.split()[0]) for x in column(page, 'board1', 1)]
    assert found == sorted(found)

    first = page.locator('#board1 thead th').nth(0)
    first.get_by_role('button').press('Space')
    assert first.get_attribute('aria-sort') == 'ascending'
    assert header.get_attribute('aria-sort') is None
    names = column(page, 'board1', 0)
    assert names == sorted(names)


def test_differences_sort_by_their_sign_and_none_is_last(open_page) -> None:
    page = open_page('four_tasks')
    button = page.locator('#board1 thead th').nth(8).get_by_role('button')
    for up in (False, True):
        button.click()
        found = column(page, 'board1', 8)
        assert found.pop() == '\u2013'
        numbers = [float(x.split()[0].replace('\u2212', '-')) for x in found]
        assert numbers == sorted(numbers, reverse=not up)
        assert min(numbers) < 0


def test_filter(open_page) -> None:
    page = open_page('four_tasks')
    box = page.get_by_label('Rows with')
    box.fill('  BALANCED_sig ')
    names = column(page, 'board0', 0)
    assert names == ['balanced_sigmoid']
    assert re.fullmatch(
        r'\d+ of \d+ rows', page.get_by_role('status').inner_text()
    )
    box.fill('')
    assert len(column(page, 'board0', 0)) == 13


@pytest.mark.parametrize('broken', ['', 'clipboard'])
def test_copy(open_page, broken) -> None:
    # Some browsers have no clipboard for a page from the disk.
    script = broken and (
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "addEventListener('copy', () => {"
        ' window.copied = document.activeElement.value; });'
    )
    page = open_page(
        'four_tasks',
        script=script
        or 'Object.defineProperty(navigator, "clipboard", {value: {writeText:'
        ' async text => { window.copied = text; }}});',
    )
    page.get_by_label('Rows with').fill('cross_entropy')
    button = page.locator('#board0 .copy')
    button.press('Enter')
    assert button.inner_text() == 'Copied'
    lines = page.evaluate('window.copied').splitlines()
    assert lines[0].startswith('method\toverall\tverdict overall\tverdict')
    assert len(lines) == 2
    found = lines[1].split('\t')
    assert [found[0], *found[2:5]] == [
        'cross_entropy',
        *2 * ['baseline'],
        '5',
    ]


def test_1203_classes_and_hostile_names(open_page) -> None:
    page = open_page('hostile')
    page.locator('#frequency ~ details summary').click()
    names = column(page, 'classes0', 0)
    assert len(names) == 1203
    assert {name.strip() for name in names} >= {n.strip() for n in HOSTILE}
    page.get_by_label('Rows with').fill('<script>document')
    assert column(page, 'classes0', 0) == [HOSTILE[0]]
    page.get_by_label('Rows with').fill('')
    header = page.locator('#classes0 thead th').nth(1)
    header.get_by_role('button').click()
    counts = [int(c.replace(',', '')) for c in column(page, 'classes0', 1)]
    assert counts == sorted(counts, reverse=True)
    assert page.locator('#commands tbody tr').count() == 60
    assert page.evaluate('document.scripts.length') == 1


def test_without_javascript(open_page) -> None:
    page = open_page('four_tasks', java_script_enabled=False)
    assert page.locator('#board0').is_visible()
    assert not page.locator('#filter').is_visible()
    assert page.get_by_role('columnheader', name='head').count() > 0
    page.locator('summary').first.click()
    assert page.locator('#classes0').is_visible()


def test_what_a_screen_reader_finds(open_page) -> None:
    page = open_page('four_tasks')
    tree = page.locator('#board0').aria_snapshot()
    assert 'caption' in tree
    assert 'columnheader "overall"' in tree
    assert 'rowheader "cross_entropy"' in tree
    picture = page.get_by_role('img', name='classification: overall')
    assert picture.count() == 1
    described = picture.locator('desc').text_content()
    assert 'Last values: cross_entropy: ' in described
    levels = page.eval_on_selector_all(
        'h1, h2, h3', 'all => all.map(h => Number(h.tagName[1]))'
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    # Each box that scrolls has a name, and keys reach it.
    assert page.locator('.box[tabindex="0"][aria-labelledby]').count() == (
        page.locator('.box').count()
    )
    page.locator('body').press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_can_be_read(open_page, scheme) -> None:
    page = open_page('four_tasks', color_scheme=scheme)

    def colour(name: str) -> str:
        return page.evaluate(
            'name => getComputedStyle(document.documentElement)'
            '.getPropertyValue(name).trim()',
            f'--{name}',
        )

    back = luminance(colour('page'))
    assert (back > 0.5) == (scheme == 'light')
    for name, least in {
        **dict.fromkeys(('ink', 'quiet', 'link', 'good', 'bad'), 4.5),
        # Lines and marks: WCAG 1.4.11.
        **{f'c{i}': 3 for i in range(9)},
    }.items():
        low, high = sorted((back, luminance(colour(name))))
        assert (high + 0.05) / (low + 0.05) >= least, name
    # Text and lines of pictures follow.
    ink = page.evaluate('getComputedStyle(document.body).color')
    assert ink == page.evaluate(
        "getComputedStyle(document.querySelector('figure text')).fill"
    )
    drawn = page.evaluate(
        "getComputedStyle(document.querySelector('figure .s0')).stroke"
    )
    value = colour('c0')
    assert drawn == 'rgb({}, {}, {})'.format(
        *(int(value[i : i + 2], 16) for i in (1, 3, 5))
    )


def test_print(open_page) -> None:
    page = open_page('four_tasks')
    page.emulate_media(media='print')
    assert not page.locator('nav').is_visible()
    assert not page.locator('#filter').is_visible()
    assert page.locator('details[open]').count() == 0
    assert page.pdf().startswith(b'%PDF')
    assert page.locator('details:not([open])').count() == 0
