"""Make all screenshots in README and docs from one `aeflow demo`.

    python benchmarks/docs_pictures.py --folder /tmp/aeflow --to docs

Writes `terminal.svg` (the terminal after `aeflow demo` and `aeflow predict`) and
`terminal_training.svg` (during the training); `overlay.png`; `report_evaluation.png`, `report_case.png` (dark) and
`report_phone.png` of the evaluation's report, and `report_inference.png`. The commands run in the folder, whose name
appears in the pictures. It takes minutes, and needs Chromium and `pip install -e ".[docs,test]"`.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from shared import arguments
from terminal_recording import RecordedTerminal

SHOWN = ("test_abnormal_005", "test_abnormal_008", "test_abnormal_013", "test_normal_000", "test_normal_005")
MAX_BYTES = 200_000


def run_demo(folder: Path, to: Path) -> None:
    """Run the demo, and a prediction of some of its volumes; draw the terminal."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "AEFLOW_HOME": str(folder / "home"), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    terminal = RecordedTerminal(folder, environment)
    meanwhile = to / "terminal_training.svg"
    meanwhile.unlink(missing_ok=True)

    def draw_halfway() -> None:
        bar = re.search(r"^training .* (\d+)/(\d+) ", terminal.text(), flags=re.MULTILINE)
        if bar and int(bar[1]) > 0.6 * int(bar[2]) and not meanwhile.exists():
            meanwhile.write_text(terminal.picture("aeflow demo"), encoding="utf-8")

    terminal.run("aeflow", "demo", "-o", "demo", each_time=draw_halfway)
    (folder / "scans").mkdir()
    for name in SHOWN:
        shutil.copy(folder / f"home/phantom/images/{name}.nii.gz", folder / "scans")
    terminal.run("aeflow", "predict", "scans", "-m", "demo/model", "-o", "maps")
    (to / "terminal.svg").write_text(terminal.picture("aeflow"), encoding="utf-8")


def save(picture: Image.Image, path: Path) -> None:
    """Save a picture with few colours, as large as fits."""
    for share, colours in product((1, 0.9, 0.8, 0.7, 0.6, 0.5), (256, 128)):
        size = (round(picture.width * share), round(picture.height * share))
        smaller = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        smaller.quantize(colours, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return


def look_at(browser: Any, report: Path, to: Path, width: int, height: int, scheme: str, opens_case: bool) -> None:
    """Take a screenshot of a report."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(report.absolute().as_uri())
    page.locator(".thumb canvas").first.wait_for()
    if opens_case:
        page.locator(".thumb").first.click()
        page.locator("#viewer canvas").first.wait_for()
    page.wait_for_timeout(500)
    save(Image.open(io.BytesIO(page.screenshot())), to)
    page.close()


def main() -> None:
    given = arguments(__doc__, "folder", "to").parse_args()
    given.folder.mkdir(parents=True)
    given.to.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    run_demo(given.folder, given.to)
    shutil.copy(given.folder / f"maps/{SHOWN[0]}_overlay.png", given.to / "overlay.png")
    evaluation, inference = (given.folder / name / "report.html" for name in ("demo/evaluation", "maps"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        look_at(browser, evaluation, given.to / "report_evaluation.png", 1280, 1240, "light", opens_case=False)
        look_at(browser, evaluation, given.to / "report_case.png", 1280, 900, "dark", opens_case=True)
        look_at(browser, evaluation, given.to / "report_phone.png", 400, 860, "light", opens_case=False)
        look_at(browser, inference, given.to / "report_inference.png", 1280, 1100, "light", opens_case=False)
        browser.close()


if __name__ == "__main__":
    main()
