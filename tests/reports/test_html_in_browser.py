"""The page in a real browser: sort, filter, open a layer, by mouse and by keyboard, on a phone, in the dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spectrascope.advice.trajectory import build_trajectory
from spectrascope.gating import compare
from spectrascope.reports.charts.inks import DARK, LIGHT
from spectrascope.reports.html.page import report_html
from spectrascope.reports.html.trajectory import trajectory_html
from spectrascope.reports.render import Format, View, render
from tests.support.browser import Browser, chromium
from tests.support.chart_cases import (
    HOSTILE_NAMES,
    blocks_report,
    hostile_report,
    one_layer_report,
    skipped_report,
    training_checkpoints,
)
from tests.support.gate_reports import network
from tests.support.made_up_reports import LONG_NAME, big_report, decomposed_report, mixed_report

ROWS = "#layer-table tbody tr"
NAMES = f"{ROWS} th"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {
        "mixed": report_html(mixed_report()),
        "big": report_html(big_report()),
        "one": report_html(one_layer_report()),
        "skipped": report_html(skipped_report()),
        "hostile": report_html(hostile_report()),
        "blocks": report_html(blocks_report()),
        "trajectory": trajectory_html(build_trajectory(training_checkpoints())),
        "decomposition": render(decomposed_report(), Format.HTML, view=View.DECOMPOSITION),
        "comparison": render(compare(network(0), network(1)), Format.HTML),
    }
    for name, text in found.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


SMALL_TEXT = """
return [...document.querySelectorAll('main > section .chart text, main > section .chart tspan')].filter(text => {
  const drawing = text.ownerSVGElement, scale = drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;
  return parseFloat(getComputedStyle(text).fontSize) * scale < 11.99;
}).map(text => text.textContent);
"""
CUT_OFF = """
return [...document.querySelectorAll('main > section .chart text')].filter(text => {
  const own = text.getBoundingClientRect(), figure = text.closest('figure').getBoundingClientRect();
  return own.right > figure.right || own.left < figure.left;
}).map(text => text.textContent);
"""


def beta_column(browser: Browser) -> int:
    """Number of the column of the published beta, the name's being 0; also where headings are hidden."""
    heads = browser.run(
        "return [...document.querySelectorAll('#layer-table thead button')].map(b => b.textContent.trim())"
    )
    return next(i for i, head in enumerate(heads) if head.startswith("β"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "name", ["mixed", "big", "one", "skipped", "hostile", "trajectory", "decomposition", "comparison"]
)
def test_pages_open_without_complaints_requests_or_sideways_scrolling(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    shade = (DARK if dark else LIGHT).background
    assert background == f"rgb({', '.join(str(int(shade[i : i + 2], 16)) for i in (1, 3, 5))})"
    for chart in browser.all("main > section .chart"):
        assert chart.size["width"] > 250
        assert chart.size["height"] > 150
    assert browser.run(SMALL_TEXT) == []
    assert browser.run(CUT_OFF) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_long_words_wrap_in_their_cells(browser: Browser, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["decomposition"], width=width)
    boxes = browser.run(
        "return [...document.querySelectorAll('td.words')].map(cell => [cell.scrollWidth, cell.clientWidth, "
        "cell.getBoundingClientRect().right, cell.closest('.scroll').getBoundingClientRect().right])"
    )
    assert boxes
    assert all(inner <= own and right <= edge + 1 for inner, own, right, edge in boxes)


def test_a_page_holds_its_numbers_to_save(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.page.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    report = decomposed_report()
    browser.open(pages["decomposition"])
    for button in browser.all(".files button"):
        button.click()
    texts = {"report.json": Format.JSON, "report.csv": Format.CSV}
    WebDriverWait(browser.page, 30).until(lambda _: all((tmp_path / name).exists() for name in texts))
    for name, form in texts.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == render(report, form, view=View.DECOMPOSITION)
    assert browser.complaints() == []
    assert browser.requests() == []


def test_sorting(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"])
    order = browser.texts(NAMES)
    column = beta_column(browser)
    beta = browser.all("#layer-table thead button")[column]
    beta.click()
    ascending = browser.texts(NAMES)
    assert ascending[:3] == [LONG_NAME, "a[red]b|c", "conv1.weight"]
    assert browser.all("#layer-table thead th")[column].get_attribute("aria-sort") == "ascending"
    beta.click()
    assert browser.texts(NAMES)[:3] == ascending[:3][::-1]
    # What was not measured comes last either way.
    assert set(browser.texts(NAMES)[3:]) == set(ascending[3:]) == {"head.weight", "head.bias", "dead.weight"}
    browser.find("#layer-table thead button").click()
    assert browser.texts(NAMES) == sorted(order, key=str.lower)
    assert [head.get_attribute("aria-sort") for head in browser.all("#layer-table thead th")][:4] == [
        "ascending", None, None, None,
    ]  # fmt: skip


def test_the_page_of_a_document_sorts_by_numbers_and_finds_names(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"])
    rows = "#sheet-0 tbody tr"
    heads = browser.texts("#sheet-0 thead button")
    n = len(browser.texts(f"{rows} th"))
    browser.all("#sheet-0 thead button")[heads.index("z")].click()
    column = heads.index("z") + 1
    values = [text for text in browser.texts(f"{rows} td:nth-child({column})") if text != "–"]
    assert len(values) > 5
    assert [float(text) for text in values] == sorted(float(text) for text in values)
    browser.find(".find").send_keys("alpha_g")
    assert 0 < len(browser.texts(f"{rows} th")) < n
    assert set(browser.texts(f"{rows} td:nth-child({heads.index('number') + 1})")) == {"alpha_g"}
    assert browser.complaints() == []


def test_names_sort_by_their_numbers(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["big"])
    browser.find("#layer-table thead button").click()
    names = browser.run(f"return [...document.querySelectorAll('{NAMES}')].map((cell) => cell.textContent)")
    assert names == [f"transformer.h.{i}.attention.output_projection.weight" for i in range(300)]


def test_filtering(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"])
    assert browser.find("output").text == "6 shown"
    browser.find(".find").send_keys("WEIGHT dead")
    assert browser.texts(NAMES) == ["dead.weight"]
    assert browser.find("output").text == "1 of 6 shown"
    browser.find(".find").send_keys("x")
    assert browser.texts(NAMES) == []
    assert browser.texts(".empty") == ["No layer matches."]
    browser.find(".find").clear()
    browser.find(".find").send_keys(" ")
    browser.run(
        "const [kind, status] = document.querySelectorAll('.choose');"
        "kind.value = 'conv'; status.value = 'ok';"
        "kind.dispatchEvent(new Event('change')); status.dispatchEvent(new Event('change'));"
    )
    assert browser.texts(NAMES) == ["conv1.weight", "a[red]b|c", LONG_NAME]


def test_a_layer_opens_and_closes_by_mouse(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"])
    browser.all(".open")[1].click()
    assert browser.find("#layer-title").text == "a[red]b|c"
    assert browser.run("return document.getElementById('layer').open")
    assert len(browser.all("dialog .chart")) == 2
    facts = dict(zip(browser.texts("dialog dt"), browser.texts("dialog dd"), strict=True))
    assert facts["β"].startswith("1.640 95 %: ")
    assert facts["h<0"].startswith("2 ")
    assert facts["self-check"] == "– not among the pairs compared"
    browser.find("dialog summary").click()
    assert len(browser.texts("dialog details tbody tr")) == 20
    browser.find(".next").click()
    assert browser.find("#layer-title").text == LONG_NAME
    assert len(browser.all("#layer-title wbr")) == LONG_NAME.count(".") + LONG_NAME.count("_")
    browser.find(".close").click()
    assert not browser.run("return document.getElementById('layer').open")
    assert browser.complaints() == []


def test_a_failed_layer_says_why(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"], fragment="#dead.weight")
    facts = dict(zip(browser.texts("dialog dt"), browser.texts("dialog dd"), strict=True))
    assert facts["status"] == "failed the gradient is zero everywhere"
    assert browser.all("dialog .chart") == []


def test_everything_works_from_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(pages["mixed"])
    browser.press(Keys.TAB, Keys.ENTER)  # the link that skips to the layers
    assert browser.run("return location.hash") == "#layers"
    browser.press("/")
    assert browser.run("return document.activeElement.className") == "find"
    browser.press("conv1")
    for _ in range(60):  # past the filters, the table's frame and its headings
        browser.press(Keys.TAB)
        if browser.run("return document.activeElement.className") == "open":
            break
    browser.press(Keys.ENTER)
    assert browser.find("#layer-title").text == "conv1.weight"
    browser.press(Keys.ESCAPE)
    assert not browser.run("return document.getElementById('layer').open")
    assert browser.run("return document.activeElement.className") == "open"  # the focus is where it was
    browser.run("document.querySelector('.find').value = ''")
    browser.run("document.querySelector('.find').dispatchEvent(new Event('input'))")
    browser.press(Keys.ENTER, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.find("#layer-title").text == "a[red]b|c"
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_the_arrows_follow_the_order_and_the_filter(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"])
    browser.all("#layer-table thead button")[beta_column(browser)].click()
    browser.find(".open").click()
    assert browser.find("#layer-title").text == LONG_NAME
    assert not browser.find(".previous").is_enabled()
    browser.find(".next").click()
    assert browser.find("#layer-title").text == "a[red]b|c"


def test_a_link_to_a_layer_opens_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"])
    browser.all(".open")[1].click()
    address = browser.run("return location.hash")
    browser.open(pages["mixed"], fragment=address)
    assert browser.find("#layer-title").text == "a[red]b|c"


def test_a_phone_shows_cards_to_sort_by_a_choice(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["mixed"], width=390, height=844)
    cells = browser.all(f"{ROWS}:first-child > *")
    assert len({cell.location["y"] for cell in cells}) > 2  # one below the other
    column = beta_column(browser)
    cell = f"document.querySelectorAll('#layer-table td')[{column - 1}]"
    assert browser.run(f"return getComputedStyle({cell}, '::before').content") == '"β"'
    browser.run(
        f"const s = document.querySelector('.sort'); s.value = '{column}'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.texts(NAMES)[0] == LONG_NAME
    browser.find(".turn").click()
    assert browser.texts(NAMES)[0] == "conv1.weight"
    browser.find(".open").click()
    dialog = browser.find("dialog")
    assert (dialog.size["width"], dialog.size["height"]) == (390, 844)
    assert browser.run("return document.querySelector('dialog').scrollWidth") <= 390


@pytest.mark.parametrize("name", ["mixed", "one", "trajectory"])
@pytest.mark.parametrize("width", [390, 320])
def test_the_button_that_turns_the_order_stands_beside_its_choice(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width, height=844)
    choice, button = browser.find(".sort").rect, browser.find(".turn").rect
    assert choice["y"] <= button["y"] + button["height"] / 2 <= choice["y"] + choice["height"]
    assert button["x"] >= choice["x"] + choice["width"]
    assert button["x"] + button["width"] <= width


@pytest.mark.parametrize("name", ["mixed", "big", "blocks", "trajectory"])
def test_no_text_of_a_chart_is_cut_off(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    outside = browser.run(
        "const out = [];"
        "for (const chart of document.querySelectorAll('main .chart')) {"
        " const frame = chart.getBoundingClientRect();"
        " for (const text of chart.querySelectorAll('text')) { const box = text.getBoundingClientRect();"
        "  if (box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom || box.top < frame.top)"
        "   out.push(text.textContent); } }"
        "return out"
    )
    assert browser.all("main .chart text")
    assert outside == []


@pytest.mark.parametrize("width", [1280, 390])
def test_text_stands_out_and_targets_are_large_enough(browser: Browser, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["mixed"], width=width)
    for selector in (".find", ".choose"):
        assert browser.find(selector).size["height"] >= 24
    browser.all(".open")[0].click()
    for button in browser.all(".bar button"):
        assert button.size["height"] >= 40
    unnamed = browser.run(
        "return [...document.querySelectorAll('button, input, select')].filter((e) =>"
        " !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert unnamed == 0
    repeated = browser.run(
        "const ids = [...document.querySelectorAll('[id]')].map((e) => e.id); return ids.length - new Set(ids).size"
    )
    assert repeated == 0


def test_hostile_names_are_only_names(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    shown = browser.run(f"return [...document.querySelectorAll('{NAMES}')].map((cell) => cell.textContent)")
    assert shown[: len(HOSTILE_NAMES)] == [name.replace("\x1b", "\\x1b") for name in HOSTILE_NAMES]
    assert browser.run("return document.scripts.length") == 1
    assert browser.run("return document.images.length") == 0
    for button in browser.all(".open"):
        button.click()
        browser.find(".close").click()
    assert browser.complaints() == []


def test_sorting_and_finding_among_three_hundred_layers_touch_each_row_a_few_times(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["big"])
    changes = browser.run(
        "const seen = new MutationObserver(() => {});"
        "seen.observe(document.body, {subtree: true, childList: true, attributes: true});"
        "document.querySelectorAll('#layer-table thead button')[3].click();"
        "const find = document.querySelector('.find'); find.value = '29'; find.dispatchEvent(new Event('input'));"
        "document.querySelector('tr:not([hidden]) .open').click(); return seen.takeRecords().length"
    )
    assert 300 <= changes < 4 * 300
    assert len(browser.texts(NAMES)) == 13  # 29, 129, 229, 290 … 299


def test_training_is_told_layer_by_layer(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["trajectory"])
    assert browser.texts(NAMES) == ["a.weight", "b.weight"]
    row = browser.texts(f"{ROWS}:first-child td")
    assert row[1] == "–"  # made-up reports of before held-out numbers: no step exponent
    assert "2.40 → 2.00" in row
    assert "−0.40" in row
    browser.find(".open").click()
    facts = dict(zip(browser.texts("dialog dt"), browser.texts("dialog dd"), strict=True))
    assert facts["step 0"].startswith("no step exponent, published β 2.40 ")
    assert facts["step 150"] == "– the file is empty"
    assert len(browser.all("dialog .chart")) == 1
    assert browser.complaints() == []
