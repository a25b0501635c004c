"""The page as users see it, at desktop and phone width, in docs/images/page_*.jpg.

    python -m benchmarks.page_screenshots --url=http://localhost:8501 --image=photo.jpg

takes a running server (python -m export.serving.server, or anything that serves the page and a
model), gives it the image, waits for the objects and keeps what the browser shows.
"""

from __future__ import annotations

import io
import pathlib
import tempfile
import time

from absl import flags
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from benchmarks import browser
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
QUALITY = 88


def define_flags() -> None:
    flags.DEFINE_string("url", "http://localhost:8501", "Server that has the page at its root.")
    flags.DEFINE_string("image", "", "Picture to give it.")
    flags.DEFINE_float("min_score", 0.5, "Objects below this score are not shown.", 0, 1)
    flags.DEFINE_string("output_dir", "docs/images", "Gets page_desktop.jpg and page_phone.jpg.")
    flags.DEFINE_bool("dark", False, "The dark colours, in files named page_*_dark.jpg.")
    flags.DEFINE_float("timeout_s", 120, "Longest wait for the objects.")


def pick(driver: WebDriver, url: str, image: pathlib.Path, timeout_s: float) -> None:
    """Opens the page, gives it the image and waits until its objects or an error are shown."""
    driver.get(url)
    driver.find_element(By.ID, "file").send_keys(str(image.resolve()))
    is_busy = "return document.getElementById('figure').ariaBusy !== 'false'"
    browser.wait_for(lambda: not driver.execute_script(is_busy), "an answer", timeout_s)
    error = driver.find_element(By.ID, "error").text
    if error:
        raise UserError(f"The page says: {error}")


def set_score(driver: WebDriver, score: float) -> None:
    """Moves the slider."""
    script = "const s = document.getElementById('score'); s.value = arguments[0];"
    driver.execute_script(f"{script} s.dispatchEvent(new Event('input'));", score)


def shoot(driver: WebDriver, name: str, path: pathlib.Path) -> None:
    """Keeps the page at one of `SIZES`: the phone's whole length, the desktop's first screen."""
    width, height = SIZES[name]
    browser.resize(driver, width, height)
    if name == "phone":
        time.sleep(0.5)  # until the page has drawn anew
        height = driver.execute_script("return document.documentElement.scrollHeight")
        browser.resize(driver, width, height)
    time.sleep(0.5)
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    write_atomically(path, buffer.getvalue())
    print(f"written: {path} ({picture.width} × {picture.height}, {buffer.tell() / 1e3:.0f} kB)")


def main() -> None:
    values = flags.FLAGS
    image = pathlib.Path(values.image)
    if not image.is_file():
        raise UserError(f"--image={values.image} is not a file.")
    scheme = f"--blink-settings=preferredColorScheme={0 if values.dark else 1}"
    suffix = "_dark" if values.dark else ""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        with browser.chromium(root / "profile", root, scheme) as driver:
            browser.resize(driver, *SIZES["desktop"])
            pick(driver, values.url, image, values.timeout_s)
            set_score(driver, values.min_score)
            for name in SIZES:
                shoot(driver, name, pathlib.Path(values.output_dir) / f"page_{name}{suffix}.jpg")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
