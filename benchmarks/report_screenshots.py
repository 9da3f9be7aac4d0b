"""Screenshots of reports for docs, in headless Chromium.

    python benchmarks/report_screenshots.py RESULTS/report.html MAPS/report.html docs

Writes report_evaluation.png, report_case.png (dark) and report_phone.png of the first report, and report_inference.png
of the second. Needs playwright (`pip install -e ".[test]"`) and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

MAX_BYTES = 150_000


def save(page: Any, path: Path) -> None:
    """A screenshot in 256 colours, as large as fits."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5):
        size = (round(picture.width * share), round(picture.height * share))
        smaller = picture.resize(size, Image.Resampling.LANCZOS)
        smaller.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("inference", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    looks = [
        ("report_evaluation.png", given.evaluation, (1280, 1240), "light", False),
        ("report_case.png", given.evaluation, (1280, 900), "dark", True),
        ("report_phone.png", given.evaluation, (400, 860), "light", False),
        ("report_inference.png", given.inference, (1280, 900), "light", False),
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, report, (width, height), scheme, opens_case in looks:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.absolute().as_uri())
            page.locator(".thumb canvas").first.wait_for()
            if opens_case:
                page.locator(".thumb").first.click()
                page.locator("#viewer canvas").first.wait_for()
            page.wait_for_timeout(500)
            save(page, given.folder / name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
