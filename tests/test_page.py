"""The local server's page in a real browser: from picking a picture to the downloaded files."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks import browser, page_screenshots
from export.client import Client
from maskx_tf.ops import masks
from maskx_tf.ops.polygons import outline
from tests import harness, stub_server
from tests.stub_server import outputs

HEIGHT, WIDTH = 120, 160
JUNK_COLOR = (9, 8, 7)


def nested():
    """Three objects: a large one, a small one of another class on it, and a weak one beside."""
    made = outputs(count=3, padding=1)
    boxes = [[10, 10, 110, 90], [40, 30, 70, 60], [20, 100, 60, 150], [0, 0, 0, 0]]
    made["detection_boxes"] = np.array([boxes], np.float32)
    made["detection_scores"] = np.array([[0.9, 0.8, 0.3, 0]], np.float32)
    made["detection_classes"] = np.array([[1, 2, 1, 0]], np.int32)
    names = ["cat", "dog", "cat", "background"]
    made["detection_class_names"] = np.array([names], object)
    made["detection_mask_seen"] = np.array([[True, False, True, False]])
    made["detection_masks"][:] = 255
    return made


def model(data):
    """Many objects, but in portraits the three of `nested`; dark pictures are refused."""
    with Image.open(io.BytesIO(data)) as image:
        if image.convert("RGB").getpixel((0, 0)) == JUNK_COLOR:
            return 400, "Input is no picture <b>I</b> like"
        return nested() if image.width == WIDTH else outputs(20, image.height, image.width, seed=2)


def test_the_page_is_complete_and_needs_no_network():
    """Every file it refers to is there, and none is elsewhere."""
    files = {path.name: path.read_text() for path in stub_server.PAGE.iterdir()}
    assert {"index.html", "page.js", "page.css"} <= files.keys()
    for name, text in files.items():
        for path in re.findall(r'(?:src|href)="(/[^"]*)"', text):
            assert path.removeprefix("/page/") in files, f"{name}: {path}"
        for path in re.findall(r'from "\./([^"]*)"', text):
            assert path in files, f"{name}: {path}"
        outside = re.sub(r"http://www\.w3\.org/2000/svg", "", text)
        assert not re.search(r"https?://|url\(|//cdn", outside), name


pytestmark_browser = pytest.mark.skipif(
    browser.programs() is None, reason="chromium (or google-chrome) and chromedriver are absent"
)


@pytest.fixture(scope="module")
def server():
    with stub_server.serve(model) as running:
        yield running


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def opened(tmp_path_factory, downloads):
    with browser.chromium(tmp_path_factory.mktemp("browser") / "profile", downloads) as driver:
        yield driver


@pytest.fixture
def driver(opened, server, downloads):
    """The page, freshly opened; nothing may have gone wrong in it at the end."""
    for path in downloads.iterdir():
        path.unlink()
    server.model, server.delay_s, server.state = model, 0.0, "AVAILABLE"
    browser.resize(opened, 1280, 860)
    opened.get_log("browser")
    opened.get(server.url)
    yield opened
    wrong = [entry for entry in opened.get_log("browser") if entry["source"] != "network"]
    assert wrong == []


def picture(path, height=HEIGHT, width=WIDTH, color=None):
    image = harness.random_image(height, width)
    if color:
        image[:] = color
    Image.fromarray(image).save(path)
    return path


def pick(driver, server, path):
    page_screenshots.pick(driver, server.url, path, 20)


def text(driver, identifier):
    return driver.find_element(By.ID, identifier).text


def rows(driver):
    """What the list of objects says, as (class, score)."""
    items = driver.find_elements(By.CSS_SELECTOR, "#objects li")
    return [tuple(part for part in item.text.split("\n") if "(" not in part) for item in items]


def click(driver, identifier):
    driver.find_element(By.ID, identifier).click()


def downloaded(downloads, name):
    path = downloads / name
    return browser.wait_for(lambda: path.is_file() and path.read_bytes(), f"the download of {name}")


def pixels(driver):
    """The canvas as uint8 [H, W, 3]."""
    script = "return document.getElementById('canvas').toDataURL('image/png')"
    encoded = driver.execute_script(script).partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(int)


def click_picture(driver, x, y):
    """Clicks the picture at a place in its own pixels."""
    canvas = driver.find_element(By.ID, "canvas")
    scale = canvas.size["width"] / WIDTH
    actions = ActionChains(driver).move_to_element_with_offset(
        canvas,
        round(x * scale - canvas.size["width"] / 2),
        round(y * scale - canvas.size["height"] / 2),
    )
    actions.click().perform()


@pytestmark_browser
@pytest.mark.slow
class TestBrowser:
    @pytest.mark.parametrize("format_", ["rle", "polygon"])
    def test_the_downloaded_json_is_the_clients(self, driver, server, downloads, tmp_path, format_):
        """From picking a picture to the file, for all of 20 objects."""
        path = picture(tmp_path / "some photo.png", 301, 427)
        pick(driver, server, path)
        page_screenshots.set_score(driver, 0)
        driver.find_element(By.CSS_SELECTOR, f"#format option[value={format_}]").click()
        click(driver, "download-json")
        found = json.loads(downloaded(downloads, "some photo.json"))
        with Client(server.url) as client:
            answer = client.detect(path)
        assert found == answer.to_coco(1, "some photo.png", format_)
        assert len(found) == 20 and text(driver, "download-count") == "20 objects"

    def test_score_and_classes_choose_what_is_shown(self, driver, server, downloads, tmp_path):
        pick(driver, server, picture(tmp_path / "a.png"))
        assert rows(driver) == [("cat", "0.90"), ("dog", "0.80")]
        assert text(driver, "status").startswith("2 of 3 objects are shown. Answered in ")
        counts = [item.text for item in driver.find_elements(By.CSS_SELECTOR, "#classes li")]
        assert [c.split("\n")[0] for c in counts] == ["cat", "dog"]
        page_screenshots.set_score(driver, 0.2)
        assert rows(driver) == [("cat", "0.90"), ("dog", "0.80"), ("cat", "0.30")]
        assert driver.find_element(By.CSS_SELECTOR, "#classes .count").text == "2"
        driver.find_element(By.CSS_SELECTOR, "#classes input").click()  # cats
        assert rows(driver) == [("dog", "0.80")]
        assert text(driver, "status") == "1 of 3 objects are shown."
        assert driver.find_element(By.ID, "canvas").accessible_name == "a.png: 1 dog"
        click(driver, "download-json")
        names = [r["category_name"] for r in json.loads(downloaded(downloads, "a.json"))]
        assert names == ["dog"]
        click(driver, "no-classes")
        assert rows(driver) == [] and text(driver, "no-objects") == "None is shown."
        click(driver, "all-classes")
        page_screenshots.set_score(driver, 0.95)
        assert "lower the score" in text(driver, "status")

    def test_an_object_is_seen_alone(self, driver, server, downloads, tmp_path):
        """By a click on the smallest at that place; Esc, or a click beside all, shows all."""
        pick(driver, server, picture(tmp_path / "a.png"))
        everything = pixels(driver)
        click_picture(driver, 45, 55)
        assert text(driver, "status") == "Only dog 0.80 is shown."
        selected = driver.find_elements(By.CSS_SELECTOR, "#objects li[aria-selected=true]")
        assert [item.text.split("\n")[0] for item in selected] == ["dog"]
        assert pixels(driver).mean() < 0.7 * everything.mean()  # all else is darkened
        click(driver, "download-json")
        assert len(json.loads(downloaded(downloads, "a.json"))) == 1
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        assert text(driver, "status") == "2 of 3 objects are shown."
        click_picture(driver, 20, 100)
        assert text(driver, "status") == "Only cat 0.90 is shown."
        click_picture(driver, 155, 115)
        assert text(driver, "status") == "2 of 3 objects are shown."

    def test_masks_are_green_where_trained_and_red_where_not(self, driver, server, tmp_path):
        path = picture(tmp_path / "a.png", color=(120, 120, 120))
        pick(driver, server, path)
        drawn = pixels(driver)
        scale = drawn.shape[1] / WIDTH
        red, green, _ = drawn[int(100 * scale), int(20 * scale)]  # in the cat's mask
        assert green > red + 30
        red, green, _ = drawn[int(60 * scale), int(50 * scale)]  # in the dog's
        assert red > green + 30
        np.testing.assert_allclose(drawn[int(110 * scale), int(120 * scale)], 120, atol=2)

    def test_the_downloaded_picture(self, driver, server, downloads, tmp_path):
        """Has the size of the original, masks over it and the rest as it was."""
        pick(driver, server, picture(tmp_path / "a.png", color=(120, 120, 120)))
        click(driver, "download-png")
        image = np.asarray(
            Image.open(io.BytesIO(downloaded(downloads, "a-objects.png"))).convert("RGB")
        ).astype(int)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[100, 20, 1] > image[100, 20, 0] + 30
        np.testing.assert_array_equal(image[115, 130], 120)

    def test_the_keyboard_is_enough(self, driver, server, tmp_path):
        pick(driver, server, picture(tmp_path / "a.png"))
        reached = []
        for _ in range(12):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            element = driver.switch_to.active_element
            reached.append(element.get_attribute("id") or element.get_attribute("type"))
            outline = element.value_of_css_property("outline-style")
            around = driver.execute_script(
                "return getComputedStyle(document.activeElement.parentElement).outlineStyle"
            )
            assert "solid" in (outline, around), f"no visible focus on {reached[-1]}"
            if reached[-1] == "object-0":
                break
        assert reached[:2] == ["file", "score"] and reached[-1] == "object-0"
        ActionChains(driver).send_keys(Keys.ARROW_DOWN, Keys.ENTER).perform()
        assert text(driver, "status") == "Only dog 0.80 is shown."
        assert driver.switch_to.active_element.get_attribute("id") == "object-1"
        ActionChains(driver).send_keys(Keys.HOME, " ").perform()
        assert text(driver, "status") == "Only cat 0.90 is shown."
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        assert text(driver, "status") == "2 of 3 objects are shown."
        assert driver.switch_to.active_element.get_attribute("id") == "object-0"

    def test_screen_readers_are_told(self, driver, server, tmp_path):
        """Every control has a name, every object says whether it had masks."""
        pick(driver, server, picture(tmp_path / "a.png"))
        for element in driver.find_elements(By.CSS_SELECTOR, "input, button, select, [role]"):
            if element.is_displayed() and element.get_attribute("role") != "status":
                assert element.accessible_name, element.get_attribute("outerHTML")[:200]
        names = [
            item.accessible_name for item in driver.find_elements(By.CSS_SELECTOR, "#objects li")
        ]
        assert re.fullmatch(r"cat\s*\(class trained with masks\)\s*0.90", names[0])
        assert re.fullmatch(r"dog\s*\(class never seen with a mask\)\s*0.80", names[1])
        status = driver.find_element(By.ID, "status")
        assert status.get_attribute("aria-live") == "polite"
        assert driver.find_element(By.ID, "error").get_attribute("role") == "alert"

    def test_a_refused_picture(self, driver, server, tmp_path):
        """Is an error in plain words, and the next picture is answered."""
        bad = picture(tmp_path / "bad.png", color=JUNK_COLOR)
        driver.find_element(By.ID, "file").send_keys(str(bad))
        wanted = "The server refused the picture. (400: Input is no picture <b>I</b> like)"
        browser.wait_for(lambda: text(driver, "error") == wanted, "the error")
        assert not driver.find_element(By.ID, "panel").is_displayed()
        good = picture(tmp_path / "good.png")
        driver.find_element(By.ID, "file").send_keys(str(good))
        browser.wait_for(lambda: rows(driver), "the objects")
        assert text(driver, "error") == ""

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ((503, "full"), "The server is busy at the moment; try again. (503: full)"),
            ((404, "no servable"), "The server has no model “maskx”. (no servable)"),
            ((413, "10 MB"), "The picture is too large for the server. (10 MB)"),
        ],
    )
    def test_other_refusals(self, driver, server, tmp_path, answer, message):
        server.model = lambda data: answer
        path = picture(tmp_path / "a.png")
        driver.find_element(By.ID, "file").send_keys(str(path))
        browser.wait_for(lambda: text(driver, "error") == message, f"the error {message}")

    def test_a_model_that_is_still_loading(self, driver, server, tmp_path):
        server.model, server.state = lambda data: (404, "no servable"), "LOADING"
        driver.find_element(By.ID, "file").send_keys(str(picture(tmp_path / "a.png")))
        message = "The model is still loading; try again in a moment."
        browser.wait_for(lambda: text(driver, "error") == message, "the error")

    def test_a_server_that_is_gone(self, driver, server, tmp_path):
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **conditions})
        try:
            driver.find_element(By.ID, "file").send_keys(str(picture(tmp_path / "a.png")))
            message = "The server cannot be reached. Is it still running?"
            browser.wait_for(lambda: text(driver, "error") == message, "the error")
        finally:
            driver.execute_cdp_cmd(
                "Network.emulateNetworkConditions", {"offline": False, **conditions}
            )

    def test_a_file_that_is_no_picture(self, driver, server, tmp_path):
        before = len(server.requests)
        path = tmp_path / "a.jpg"
        path.write_bytes(b"<html>")
        driver.find_element(By.ID, "file").send_keys(str(path))
        message = "“a.jpg” cannot be read as a picture."
        browser.wait_for(lambda: text(driver, "error") == message, "the error")
        path = tmp_path / "notes.txt"
        path.write_text("no picture")
        driver.find_element(By.ID, "file").send_keys(str(path))
        message = "“notes.txt” is not a picture."
        browser.wait_for(lambda: text(driver, "error") == message, "the error")
        assert len(server.requests) == before

    def test_cancel_and_a_newer_picture(self, driver, server, tmp_path):
        """What was asked for before does not come back."""
        server.delay_s = 1.5
        driver.find_element(By.ID, "file").send_keys(str(picture(tmp_path / "old.png", 50, 60)))
        browser.wait_for(driver.find_element(By.ID, "cancel").is_displayed, "the button")
        assert text(driver, "status") == "Looking at old.png …"
        click(driver, "cancel")
        assert text(driver, "status") == "Cancelled."
        driver.find_element(By.ID, "file").send_keys(str(tmp_path / "old.png"))
        driver.find_element(By.ID, "file").send_keys(str(picture(tmp_path / "new.png")))
        browser.wait_for(lambda: rows(driver), "the objects")
        assert len(rows(driver)) == 2
        assert driver.find_element(By.ID, "canvas").accessible_name.startswith("new.png")

    def test_pictures_come_by_drop_and_paste(self, driver, server, tmp_path):
        """A picture in a format that browsers alone read is sent as PNG."""
        script = """
            const [kind, name] = arguments, done = arguments[2];
            const canvas = new OffscreenCanvas(160, 120);
            canvas.getContext("2d").fillRect(0, 0, 160, 120);
            canvas.convertToBlob({type: "image/webp"}).then((blob) => {
              const data = new DataTransfer();
              data.items.add(new File([blob], name, {type: "image/webp"}));
              const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: data})
                : new ClipboardEvent("paste", {clipboardData: data});
              document.dispatchEvent(event);
              done();
            });
        """
        for kind in ("drop", "paste"):
            driver.get(server.url)
            driver.execute_async_script(script, kind, f"{kind}.webp")
            browser.wait_for(lambda: rows(driver), f"the objects after {kind}")
            _, body = server.requests[-1]
            assert body["instances"][0]["image_bytes"]["b64"].startswith("iVBORw0KGgo")  # PNG

    @pytest.mark.parametrize("honoured", [True, False])
    def test_a_photograph_lying_on_its_side(self, driver, server, tmp_path, honoured):
        """Is shown as the model counts its pixels: upright if it honours EXIF, else lying."""
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "a.jpg"
        Image.fromarray(harness.random_image(120, 160)).save(path, exif=exif)
        size = (160, 120) if honoured else (120, 160)
        server.model = lambda data: outputs(5, *size)
        pick(driver, server, path)
        canvas = driver.find_element(By.ID, "canvas")
        assert canvas.size["width"] / canvas.size["height"] == pytest.approx(
            size[1] / size[0], 0.02
        )

    @pytest.mark.parametrize("width", [320, 390, 768, 1280])
    def test_nothing_is_cut_off_at_any_width(self, driver, server, tmp_path, width):
        browser.resize(driver, width, 800)
        pick(driver, server, picture(tmp_path / "a.png"))
        page_width = driver.execute_script("return document.documentElement.scrollWidth")
        assert page_width <= width
        for name in ("canvas", "score", "download-json", "download-png", "file"):
            box = driver.find_element(By.ID, name).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 40

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(self, driver, server, tmp_path, scheme):
        """4.5 to 1 at least, as WCAG asks of small text."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        pick(driver, server, picture(tmp_path / "a.png"))
        click(driver, "download-title")
        ratios = driver.execute_script(CONTRAST)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        assert len(ratios) > 20
        assert [item for item in ratios if item[0] < 4.5] == []

    def test_less_motion_where_asked_for(self, driver):
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        script = """
            document.querySelectorAll("[hidden]").forEach((e) => (e.hidden = false));
            const bar = getComputedStyle(document.getElementById("progress"), "::after");
            return bar.animationName;
        """
        assert driver.execute_script(script) == "slide"
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert driver.execute_script(script) == "none"
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# [ratio, text] of every text on the page against the colour behind it.
CONTRAST = """
const parse = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].reduce((sum, v, i) => {
  const c = v / 255;
  const linear = c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  return sum + [0.2126, 0.7152, 0.0722][i] * linear;
}, 0);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = parse(getComputedStyle(e).backgroundColor);
    if ((color[3] ?? 1) === 1) return color;
  }
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
  if (!own.length || !element.checkVisibility() || element.closest("noscript")) continue;
  const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), own[0].data.trim()]);
}
return found;
"""


@pytestmark_browser
@pytest.mark.slow
class TestArithmetic:
    """The page's own masks and codes are those of Python, for the same input."""

    SCRIPT = """
        const [cases] = arguments, done = arguments[1];
        Promise.all(["masks", "polygons"].map((name) => import(`/page/${name}.js`))).then(
          ([{pasteRegion, toRle}, {outline}]) => done(cases.map(({mask, box, height, width}) => {
            const region = pasteRegion(mask, box, height, width);
            return {rle: toRle(region, height, width), polygons: outline(region)};
          })), (error) => done(String(error)));
    """

    def compare(self, driver, cases):
        """cases: (uint8 mask [m, n], float32 box, height, width)."""
        sent = [
            {"mask": mask.tolist(), "box": [float(v) for v in box], "height": h, "width": w}
            for mask, box, h, w in cases
        ]
        found = driver.execute_async_script(self.SCRIPT, sent)
        assert len(found) == len(cases)
        for (mask, box, height, width), one in zip(cases, found, strict=True):
            box = [float(v) for v in box]
            wanted = masks.paste_to_rle(mask[None] / 255.0, np.array([box]), height, width)[0]
            assert one["rle"] == wanted, f"{box} in {height} × {width}"
            region = masks.paste_region(mask / 255.0, box, height, width)
            assert one["polygons"] == outline(*region)

    def test_smooth_masks_in_any_boxes(self, driver):
        generator = np.random.default_rng(0)
        cases = []
        for seed in range(150):
            height, width = (int(v) for v in generator.integers(1, 300, 2))
            made = outputs(1, height, width, seed=seed, padding=0)
            shift = generator.uniform(-0.2, 0.2, 4) * [height, width, height, width]
            box = (made["detection_boxes"][0, 0] + shift * (seed % 3 == 0)).astype(np.float32)
            cases.append((made["detection_masks"][0, 0], box, height, width))
        self.compare(driver, cases)

    def test_noise_with_many_holes(self, driver):
        generator = np.random.default_rng(1)
        cases = []
        for side in (1, 2, 7, 14, 28, 56):
            for _ in range(12):
                mask = generator.integers(0, 256, (side, side)).astype(np.uint8)
                box = np.sort(generator.uniform(0, 90, 4)).astype(np.float32)[[0, 1, 2, 3]]
                cases.append((mask, box, 100, 90))
        self.compare(driver, cases)

    def test_values_right_at_the_threshold(self, driver):
        """Full and empty cells in boxes whose pixels fall half-way between cells."""
        generator = np.random.default_rng(2)
        cases = []
        for size in (1, 2, 3, 14, 28, 42, 56, 70, 84, 98, 140):
            for _ in range(6):
                mask = (255 * generator.integers(0, 2, (28, 28))).astype(np.uint8)
                top, left = (int(v) for v in generator.integers(-5, 20, 2))
                other = int(generator.choice([14, 28, 42, 30, 100]))
                box = np.array([top, left, top + size, left + other], np.float32)
                cases.append((mask, box, 120, 110))
        self.compare(driver, cases)

    def test_degenerate_boxes(self, driver):
        mask = np.full((28, 28), 255, np.uint8)
        boxes = [(5, 5, 5, 9), (9, 5, 5, 9), (-20, -20, -10, -10), (50, 60, 70, 80), (0, 0, 50, 60)]
        self.compare(driver, [(mask, np.float32(box), 50, 60) for box in boxes])

    def test_numbers_are_rounded_as_python_does(self, driver):
        """Halves to the even neighbour: 12.0625 is 12.062, and 0.1875 is 0.188."""
        generator = np.random.default_rng(3)
        boxes = np.concatenate(
            [generator.integers(0, 4096, (200, 4)) / 16, generator.uniform(0, 700, (200, 4))]
        )
        boxes = boxes.astype(np.float32).astype(float)
        scores = [float(np.float32(v)) for v in generator.uniform(0, 1, 398)] + [0.0078125, 0.5]
        script = """
            const [boxes, scores] = arguments, done = arguments[2];
            import("/page/results.js").then(({toCoco}) => done(toCoco(boxes.map((box, i) => ({
              box, maskWindow: box, score: scores[i], mask: [[255]], imageSize: [2, 2]})),
              1, "a", "rle")));
        """
        found = driver.execute_async_script(script, boxes.tolist(), scores)
        for (y1, x1, y2, x2), score, one in zip(boxes.tolist(), scores, found, strict=True):
            assert one["bbox"] == [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            assert one["score"] == round(score, 6)
