"""The page in headless Chromium, at a desk's and at a phone's width."""

import contextlib
import shutil
import time

import pytest
import report_folder
from playwright import sync_api

from speciarl_jax.evaluation.report import folder, page
from speciarl_jax.verifiers import taxonomy

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
THUMB = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def thumbnails(end, sets=("emoji",)):
    return {(data, i): THUMB for data in sets for i in range(1000, end)}


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, f"none of {BROWSERS} is on the path; apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("page")
    report_folder.make(workdir)
    found = page.render(folder.read(workdir), thumbnails(1050))
    (workdir / "report.html").write_text(found)
    return workdir / "report.html"


@pytest.fixture(params=[1280, 390])
def tab(browser, path, request):
    with opened(browser, path, request.param) as tab:
        yield tab


@contextlib.contextmanager
def opened(browser, path, width):
    """The opened page; fails on an error in its script and on any request of a network."""
    errors = []
    context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    tab = context.new_page()
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    tab.on(
        "request",
        lambda r: errors.append(r.url) if not r.url.startswith(("file:", "data:")) else None,
    )
    tab.goto(path.as_uri())
    yield tab
    assert not errors
    assert tab.evaluate("window.broken") is None
    context.close()


def wait_until(tab, expression, seconds=30):
    """Asks from outside of the page: its policy lets nothing in it evaluate text as a script."""
    until = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < until, expression
        tab.wait_for_timeout(20)


def cards(tab):
    return tab.locator(".card")


def test_the_page_fits_its_width_and_runs_no_text_of_a_model(tab):
    wide, seen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide == seen
    assert cards(tab).count() == 24 and tab.locator("#count").inner_text() == "1–24 of 60 images"
    # No text of a figure is too small to read.
    sizes = tab.evaluate(
        "[...document.querySelectorAll('svg.chart')].map(s => 12 * s.getBoundingClientRect().width"
        " / s.viewBox.baseVal.width)"
    )
    assert len(sizes) > 8 and min(sizes) > 9
    shown = tab.locator("#cards").inner_text()
    assert "<script>window.broken = 1</script>" in shown and "‹U+202E›" in shown


def test_filters_leave_what_fits(tab):
    rank = dict(zip(report_folder.CYCLE, (2, 0, 4, 3, 1, 5, -1), strict=True))
    pairs = [(report_folder.CYCLE[i % 7], report_folder.CYCLE[i // 2 % 7]) for i in range(60)]
    for change, sign in (("better", 1), ("worse", -1), ("same", 0)):
        want = sum((rank[b] > rank[a]) - (rank[b] < rank[a]) == sign for a, b in pairs)
        tab.select_option("#f-change", change)
        assert f"of {want} images, out of 60" in tab.locator("#count").inner_text()
    tab.select_option("#f-change", "")
    tab.select_option("#f-from", "wrong")
    wrong = [i for i, (before, _) in enumerate(pairs) if before == "wrong"]
    assert cards(tab).count() == len(wrong)
    tab.select_option("#f-level", "easy")
    assert cards(tab).count() == len([i for i in wrong if i % 2 == 0]) < len(wrong)
    tab.select_option("#f-level", "")
    tab.select_option("#f-to", "generic")
    assert 0 < cards(tab).count() == pairs.count(("wrong", "generic")) < len(wrong)
    tab.click("#reset")
    assert "of 60 images" in tab.locator("#count").inner_text()
    tab.select_option("#f-class", "label 9")
    assert cards(tab).count() == 6 - (9 < 7)
    tab.click("#reset")
    tab.fill("#f-text", "THING 42")
    sync_api.expect(cards(tab)).to_have_count(1)
    tab.fill("#f-text", "no such words")
    tab.wait_for_selector("#empty", state="visible")
    assert tab.locator("#count").inner_text() == "No image fits these filters"


def focused(tab):
    return tab.evaluate("document.activeElement.dataset.place")


def test_the_images_can_be_walked_by_keyboard(tab):
    tab.focus("#next")
    tab.keyboard.press("Tab")
    assert focused(tab) == "0"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert focused(tab) == "1"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    columns = tab.evaluate(
        "new Set([...document.querySelectorAll('#cards li')].map(l => l.offsetLeft)).size"
    )
    tab.keyboard.press("ArrowDown")
    assert focused(tab) == str(1 + columns)
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowRight")
    assert focused(tab) == "24" and tab.locator("#page").inner_text() == "Page 2 of 3"
    tab.keyboard.press("PageDown")
    assert focused(tab) == "48" and cards(tab).count() == 12
    # Tab leaves the images instead of going through all of them.
    tab.keyboard.press("Tab")
    assert focused(tab) is None


@pytest.mark.parametrize("width", [1280, 390])
def test_the_dialog_says_why_an_answer_got_its_category(browser, tmp_path, width):
    report_folder.make(tmp_path)
    report_folder.know_more(tmp_path)
    report_folder.explain(tmp_path)
    trees = {"emoji": taxonomy.Taxonomy(report_folder.TREE)}
    (tmp_path / "report.html").write_text(page.render(folder.read(tmp_path), {}, trees))
    with opened(browser, tmp_path / "report.html", width) as tab:
        wide, seen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == seen and tab.locator("#made-with dt").count() == 8
        tab.select_option("#f-class", "House Sparrow")
        sync_api.expect(cards(tab)).to_have_count(len(report_folder.REASONS))
        cards(tab).first.click()
        for _, _, reason in report_folder.REASONS:
            # The greedy answer and the samples of two policies.
            want = [reason] * 4 if reason else []
            sync_api.expect(tab.locator("#image-body .why")).to_have_text(want)
            # The table of samples fits.
            inside, there = tab.evaluate(
                "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('dialog .scroll'))"
            )
            assert inside <= there
            tab.keyboard.press("ArrowRight")


def test_an_image_opens_and_closes_by_keyboard(tab):
    cards(tab).first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("dialog[open]")
    dialog = tab.locator("#image-body")
    assert "<think>It is base.</think>" in dialog.inner_text()
    assert "8 samples" in dialog.inner_text()
    for _ in range(30):
        tab.keyboard.press("ArrowRight")
    assert "image 1030" in dialog.inner_text()
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog[open]", state="hidden")
    # The focus is on the image that was seen last, on its own page, once the page knows of it.
    tab.wait_for_selector("[data-place='30']:focus")
    assert tab.locator("#page").inner_text() == "Page 2 of 3"


def test_samples_of_training_go_from_step_to_step(tab):
    rows = tab.locator("#rollouts tbody tr")
    assert rows.count() == 4 and rows.nth(2).inner_text().split("\t")[-1].strip() == "–"
    assert tab.locator("#step-prev").is_disabled()
    tab.click("#step-next")
    assert tab.locator("#step").input_value() == "10"
    tab.select_option("#step", "30")
    assert tab.locator("#step-next").is_disabled()


def test_the_classes_sort_by_a_column(tab):
    head = tab.locator("table.sorts th button").nth(5)
    first = tab.locator("table.sorts tbody th").first
    before = first.inner_text()
    tab.locator("table.sorts th button").nth(0).click()
    assert first.inner_text() != before
    head.click()
    assert tab.locator("table.sorts th").nth(5).get_attribute("aria-sort") == "descending"


@pytest.fixture(scope="module")
def path_of_two(tmp_path_factory):
    """A page about two data sets, whose images have the same ids."""
    workdir, sets = tmp_path_factory.mktemp("two"), ("birds", "emoji")
    report_folder.make(workdir, images=20, hostile=False, sets=sets)
    (workdir / "report.html").write_text(
        page.render(folder.read(workdir), thumbnails(1020, ("emoji",)))
    )
    return workdir / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_with_two_data_sets_the_page_opens_on_a_pair_that_every_image_has(
    browser, path_of_two, width
):
    with opened(browser, path_of_two, width) as tab:
        wide, seen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == seen
        pair = [tab.locator(f"#run-{x} option:checked").inner_text() for x in "ab"]
        assert pair == ["base", "trained"]
        assert cards(tab).count() == 24 and "of 40 images" in tab.locator("#count").inner_text()
        assert "not asked" not in tab.locator("#cards").inner_text()
        # Images of the other set with the same ids are not shown in their place.
        for data, images in (("birds", 0), ("emoji", 20)):
            tab.select_option("#f-data", data)
            assert cards(tab).count() == 20 and tab.locator("img.thumb").count() == images
        # A shift of categories for each set, and the change of each image is that of its own set.
        assert tab.locator("#shift svg[aria-label^='Change of categories']").count() == 2
        counts = []
        for data in ("birds", "emoji"):
            tab.select_option("#f-data", data)
            tab.select_option("#f-change", "better")
            counts.append(cards(tab).count())
            tab.select_option("#f-change", "worse")
            counts.append(cards(tab).count())
        assert counts[:2] == counts[:1:-1] and counts[0] != counts[1]


def test_clearing_the_filters_brings_back_the_pair_too(browser, path_of_two):
    with opened(browser, path_of_two, 1280) as tab:
        tab.select_option("#run-a", "1")
        tab.select_option("#run-b", "0")
        tab.select_option("#f-class", "label 3")
        tab.select_option("#f-sort", "label")
        tab.fill("#f-text", "thing 3")
        sync_api.expect(cards(tab)).to_have_count(2)
        tab.click("#reset")
        ids = ("run-a", "run-b", "f-class", "f-sort", "f-text")
        assert [tab.input_value(f"#{i}") for i in ids] == ["0", "1", "", "", ""]
        assert "of 40 images" in tab.locator("#count").inner_text()


def chosen(tab, *ids):
    return [tab.input_value(f"#{i}") for i in ids]


def test_the_address_opens_the_same_view_and_back_undoes_a_choice(browser, path_of_two):
    with opened(browser, path_of_two, 1280) as tab:
        tab.select_option("#f-data", "emoji")
        tab.select_option("#f-from", "wrong")
        tab.select_option("#run-a", "1")
        tab.fill("#f-text", "thing")
        tab.wait_for_url("**text=thing")
        tab.fill("#f-text", "thing 1")
        tab.wait_for_url("**text=thing+1")
        ids = ("f-data", "f-from", "run-a", "f-text")
        want, shown = chosen(tab, *ids), tab.locator("#cards").inner_text()
        address = tab.url
        assert address.endswith("#images?a=trained&from=wrong&set=emoji&text=thing+1")
        # In another tab: the same images, and the page stands at them.
        other = tab.context.new_page()
        other.goto(address)
        assert chosen(other, *ids) == want == ["emoji", "wrong", "1", "thing 1"]
        assert other.locator("#cards").inner_text() == shown
        top = "document.querySelector('#images').getBoundingClientRect().top"
        assert 0 <= other.evaluate(top) < 900
        other.close()
        # All that was typed is one step.
        tab.go_back()
        assert chosen(tab, *ids) == ["emoji", "wrong", "1", ""]
        tab.go_back()
        tab.go_back()
        assert chosen(tab, *ids) == ["emoji", "", "0", ""]
        assert "of 20 images" in tab.locator("#count").inner_text()
        # A link to a section leaves the choice alone, going back from it too.
        tab.click("nav a[href='#results']")
        assert tab.url.endswith("#results") and chosen(tab, "f-data") == ["emoji"]
        tab.go_back()
        assert chosen(tab, "f-data") == ["emoji"]
        tab.go_back()
        assert chosen(tab, *ids) == ["", "", "0", ""]
        tab.go_forward()
        assert chosen(tab, "f-data") == ["emoji"]
        tab.click("#reset")
        assert tab.url.endswith("#images") and chosen(tab, "f-data") == [""]
        tab.go_back()
        assert chosen(tab, "f-data") == ["emoji"]


def test_the_address_has_page_image_and_step_too_and_nothing_that_is_wrong(browser, path):
    with opened(browser, path, 1280) as tab:
        tab.click("#next")
        cards(tab).nth(2).click()
        assert tab.url.endswith("#images?page=2&image=1026+emoji")
        tab.keyboard.press("ArrowRight")
        address = tab.url
        assert address.endswith("image=1027+emoji")
        other = tab.context.new_page()
        other.goto(address)
        other.wait_for_selector("dialog[open]")
        assert "image 1027" in other.locator("#image-body").inner_text()
        other.close()
        tab.keyboard.press("Escape")
        tab.wait_for_url("**#images?page=2")
        tab.click("#step-next")
        assert tab.url.endswith("#samples?page=2&step=10")
        other = tab.context.new_page()
        other.goto(tab.url)
        assert chosen(other, "step") == ["10"]
        assert other.locator("#page").inner_text() == "Page 2 of 3"
        other.close()
        # What does not exist is as at first.
        other = tab.context.new_page()
        wrong = "a=nobody&from=sideways&page=99&step=4&image=7+emoji&x=%zz"
        other.goto(f"{path.as_uri()}#images?{wrong}")
        assert chosen(other, "run-a", "f-from", "step") == ["0", "", "1"]
        assert other.locator("#page").inner_text() == "Page 3 of 3"
        assert not other.locator("dialog[open]").count()
        other.close()


def test_a_table_that_scrolls_says_so_and_can_be_scrolled_by_keyboard(browser, path):
    with opened(browser, path, 390) as tab:
        wide = tab.locator("#results .wide").first
        assert wide.locator(".hint").is_visible()
        assert "scrolls sideways" in wide.locator(".hint").inner_text()
        box = wide.locator(".scroll")
        box.focus()
        for name, value in (("role", "region"), ("aria-label", "Scores of the policies")):
            assert tab.evaluate(f"document.activeElement.getAttribute('{name}')") == value
        outline = "getComputedStyle(document.activeElement).outlineWidth"
        assert tab.evaluate(outline) == "3px"
        tab.keyboard.press("ArrowRight")
        wait_until(tab, "document.activeElement.scrollLeft > 0")
        # The names of the policies stay.
        tab.evaluate("document.activeElement.scrollLeft = 1e4")
        left = "document.querySelector('.headline tbody th').getBoundingClientRect().left"
        assert tab.evaluate(left) == 16
        # Every region says it, and only where it is so.
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        wait_until(
            tab,
            "[...document.querySelectorAll('.wide')].every(w => { const s = w.lastElementChild;"
            " return w.firstElementChild.hidden === (s.scrollWidth <= s.clientWidth + 1); })",
        )
    with opened(browser, path, 1280) as tab:
        assert not tab.locator("#results .hint").first.is_visible()


def test_five_thousand_images_stay_quick(browser, tmp_path):
    report_folder.make(tmp_path, images=5000, hostile=False, samples=4)
    path = tmp_path / "report.html"
    path.write_text(page.render(folder.read(tmp_path), thumbnails(6000)))
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(path.as_uri())
    assert "of 5,000 images" in tab.locator("#count").inner_text()
    tab.fill("#f-text", "thing 4321")
    sync_api.expect(cards(tab)).to_have_count(1)
    tab.fill("#f-text", "thing 49")
    sync_api.expect(cards(tab)).to_have_count(24)
    # However many there are, only a page of them is in the document.
    assert tab.evaluate("document.querySelectorAll('img').length") <= 24
    tab.close()
