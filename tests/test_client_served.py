"""The client and the page against the local server with an export: the same answers everywhere."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from selenium.webdriver.common.by import By

from benchmarks import browser, page_screenshots
from export import saved_model
from export.client import Client, Detections, ImageError
from tests import harness, serving_toy, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    config = tiny.config()
    saved_model.export(tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A, str(root))
    return root


@pytest.fixture(scope="module")
def server(export_dir):
    with serving_toy.serving(export_dir, "maskx") as (running, _):
        yield running


@pytest.fixture(scope="module")
def images():
    """Encoded: 12 of many sizes, JPEG and PNG, and one that lies on its side."""
    generator = np.random.default_rng(0)
    found = []
    for seed in range(12):
        height, width = (int(v) for v in generator.integers(20, 200, 2))
        image = harness.random_image(height, width, seed)
        found.append(harness.encode_image(image, ".jpg" if seed % 2 else ".png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(harness.random_image(60, 90)).save(buffer, "JPEG", exif=exif)
    return [*found, buffer.getvalue()]


def urls(server):
    return f"http://127.0.0.1:{server.rest_api_port}", f"127.0.0.1:{server.port}"


def assert_close(found, wanted):
    """Equal but for the last digits, in which the images of a batch may differ from one alone."""
    assert found.image_size == wanted.image_size
    assert len(found) > 0
    for one, other in zip(found, wanted, strict=True):
        assert (one.class_name, one.mask_seen) == (other.class_name, other.mask_seen)
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
        np.testing.assert_allclose(one.box_yxyx, other.box_yxyx, atol=1e-3)
        assert np.abs(one.box_mask.astype(int) - other.box_mask).max() <= 1


def test_rest_grpc_and_python_agree(server, export_dir, images):
    """Also with junk among the images, which fails alone."""
    signature = tf.saved_model.load(str(export_dir / "1")).signatures["serving_default"]
    images = [*images[:5], b"junk", *images[5:]]
    url, address = urls(server)
    with Client(url) as rest, Client(grpc=address) as grpc:
        by_rest, by_grpc = list(rest.detect_many(images)), list(grpc.detect_many(images))
    for image, (_, one), (_, other) in zip(images, by_rest, by_grpc, strict=True):
        if image == b"junk":
            assert isinstance(one, ImageError) and isinstance(other, ImageError)
            continue
        outputs = signature(image_bytes=tf.constant([image]))
        single = {key: value.numpy()[0] for key, value in outputs.items()}
        wanted = Detections.from_outputs(single)
        assert_close(one, wanted)
        assert_close(other, wanted)
    assert by_rest[-1][1].image_size == (90, 60)  # upright


@pytest.mark.skipif(browser.programs() is None, reason="chromium and chromedriver are absent")
def test_the_page(server, images, tmp_path):
    """From a photograph that lies on its side to a json that equals the client's."""
    url, _ = urls(server)
    path = tmp_path / "photo.jpg"
    path.write_bytes(images[-1])
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with browser.chromium(tmp_path / "profile", downloads) as driver:
        page_screenshots.pick(driver, url, path, 60)
        page_screenshots.set_score(driver, 0)
        driver.find_element(By.ID, "download-json").click()
        written = downloads / "photo.json"
        content = browser.wait_for(lambda: written.is_file() and written.read_text(), "the file")
        assert driver.get_log("browser") == []
    with Client(url) as client:
        wanted = client.detect(path).to_coco()
    assert json.loads(content) == wanted and len(wanted) > 0
