"""Debian's chromium, and what axe-core finds in a page for people who see badly or hear the page read out."""

import contextlib
import shutil

import pytest

#: Path of the program; None where there is none.
PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ABSENT = "there is no chromium here: apt-get install chromium"
#: Rules of WCAG 2.2 A and AA: labels, names, roles, contrast, languages, sizes of what is touched.
_RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "resultTypes": ["violations"],
}


@contextlib.contextmanager
def started():
    """The started browser; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install rahf[browser]")
    if PATH is None:
        pytest.skip(ABSENT)
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=PATH, args=arguments)
        yield browser
        browser.close()


def tab(browser, width, height):
    """An empty tab, and the lists that its messages and requests go to."""
    page = browser.new_page(viewport={"width": width, "height": height})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    return page, messages, requests


def accessibility_faults(page, leave_out=None):
    """A line for each place that breaks a rule of WCAG 2.2 A or AA.

    Args:
      page: of playwright.
      leave_out: CSS selector of what is not looked at, such as the rest of many alike.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install rahf[browser]")
    context = {"include": [["body"]], "exclude": [[leave_out]]} if leave_out else None
    violations = axe.Axe().run(page, context, _RULES).response["violations"]
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in violations
        for node in rule["nodes"]
    ]


def check_light_and_dark(page, where, leave_out=None):
    """Asserts that a page breaks no rule, in light and in dark colours.

    Args:
      page, leave_out: as of `accessibility_faults`.
      where: said in front of a fault.
    """
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(150)  # colours may fade
        assert accessibility_faults(page, leave_out) == [], f"{where}, {scheme}"
