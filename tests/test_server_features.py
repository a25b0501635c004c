"""The local server keeps what it computed of an image until boxes of it are asked again."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from export import signatures
from export.serving.errors import Code, ServingError
from export.serving.feature_cache import FeatureCache
from export.serving.servable import Servable
from tests import tiny

OWNER = object()


def features(value=0, num_bytes=100):
    return {"a": np.full(num_bytes // 2, value, np.uint8), "b": np.zeros(num_bytes // 2, np.uint8)}


class Computing:
    """Counts how often features are computed, in a thread's time or until told to go on."""

    def __init__(self, error=None):
        self.count, self.error = 0, error
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __call__(self):
        self.count += 1
        self.started.set()
        assert self.go_on.wait(60)
        if self.error:
            raise self.error
        return features(self.count)


class TestCache:
    def test_an_image_is_computed_once_by_each_owner(self):
        cache, computing = FeatureCache(1000), Computing()
        first = cache.get(OWNER, b"image", computing)
        assert cache.get(OWNER, b"image", computing) is first and computing.count == 1
        assert cache.get(OWNER, b"other", computing)["a"][0] == 2
        assert cache.get(object(), b"image", computing)["a"][0] == 3
        assert cache.num_bytes == 300

    def test_what_was_not_used_for_longest_goes_first(self):
        cache, computing = FeatureCache(250), Computing()
        for image in (b"1", b"2", b"1", b"3"):  # 2 makes room for 3
            cache.get(OWNER, image, computing)
        assert cache.num_bytes == 200 and computing.count == 3
        cache.get(OWNER, b"1", computing)
        assert computing.count == 3
        cache.get(OWNER, b"2", computing)
        assert computing.count == 4

    def test_what_is_too_large_leaves_the_others(self):
        cache, computing = FeatureCache(250), Computing()
        cache.get(OWNER, b"1", computing)
        assert len(cache.get(OWNER, b"large", lambda: features(0, 300))["a"]) == 150
        cache.get(OWNER, b"1", computing)
        assert cache.num_bytes == 100 and computing.count == 1

    def test_owners_are_forgotten_one_by_one(self):
        cache, computing, other = FeatureCache(1000), Computing(), object()
        kept = cache.get(other, b"image", computing)
        cache.get(OWNER, b"image", computing)
        cache.drop(OWNER)
        assert cache.num_bytes == 100 and cache.get(other, b"image", computing) is kept

    def test_threads_that_want_the_same_wait_for_the_first(self):
        cache, computing = FeatureCache(1000), Computing()
        computing.go_on.clear()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(cache.get, OWNER, b"image", computing) for _ in range(4)]
            assert computing.started.wait(60)
            assert cache.get(OWNER, b"other", features)["a"][0] == 0  # waits for none
            with pytest.raises(ServingError) as caught:
                cache.get(OWNER, b"image", computing, wait_s=0.01)
            assert caught.value.code == Code.DEADLINE_EXCEEDED
            computing.go_on.set()
            assert len({id(future.result(60)) for future in asked}) == 1
        assert computing.count == 1

    def test_an_error_is_of_one_request_alone(self):
        cache, failing = FeatureCache(1000), Computing(ValueError("no image"))
        failing.go_on.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.get, OWNER, b"image", failing)
            assert failing.started.wait(60)
            second = pool.submit(cache.get, OWNER, b"image", Computing())
            failing.go_on.set()
            with pytest.raises(ValueError, match="no image"):
                first.result(60)
            assert second.result(60)["a"][0] == 1


@pytest.mark.thorough
class TestServable:
    BOXES = np.array([[[2, 3, 30, 41], [10, 5, 28, 22]]], np.float32)

    def request(self, image, boxes=BOXES, names=(tiny.VOCABULARY.names[0], "")):
        return {
            "image_bytes": np.array([image], object),
            "boxes": boxes,
            "class_names": np.array([names], object),
        }

    def test_answers_are_those_of_the_whole_signature_to_the_bit(self, exported):
        """Of the first request for an image, of later ones, and without a cache."""
        cache = FeatureCache(1 << 20)
        path = str(exported / "export" / "1")
        caching, plain = Servable(path, cache=cache), Servable(path)
        images = [tf.io.encode_png(image).numpy() for image in tiny.images(2)]
        for image in (*images, *images):
            for boxes, names in ((self.BOXES, ["", ""]), (self.BOXES[:, :1], ["bee"])):
                asked = self.request(image, boxes, names)
                found, wanted = (s.run(signatures.BOX_PROMPTS, asked) for s in (caching, plain))
                assert found.keys() == wanted.keys() and found["detection_masks"].std() > 0
                for key in wanted:
                    np.testing.assert_array_equal(found[key], wanted[key], key)
        size = cache.num_bytes
        other = Servable(path, cache=cache)
        other.run(signatures.BOX_PROMPTS, self.request(images[0]))
        assert cache.num_bytes > size  # another version's features are its own
        other.close()
        assert cache.num_bytes == size
        caching.close()
        assert cache.num_bytes == 0

    def test_the_second_request_needs_the_masks_alone(self, exported, monkeypatch):
        caching = Servable(str(exported / "export" / "1"), cache=FeatureCache(1 << 20))
        ran, run = [], Servable._run

        def spy(self, signature, *others):
            ran.append(sorted(signature.inputs))
            return run(self, signature, *others)

        monkeypatch.setattr(Servable, "_run", spy)
        asked = self.request(tf.io.encode_png(tiny.images()[0]).numpy())
        chosen = ["detection_scores"]
        for _ in range(2):
            found = caching.run(signatures.BOX_PROMPTS, asked, output_filter=chosen)
            assert list(found) == chosen
        assert [inputs == ["image_bytes"] for inputs in ran] == [True, False, False]
        with pytest.raises(ServingError, match="no area"):
            caching.run(
                signatures.BOX_PROMPTS, self.request(asked["image_bytes"][0], 0 * self.BOXES)
            )
        with pytest.raises(ServingError, match="not a JPEG"):
            caching.run(signatures.BOX_PROMPTS, self.request(b"no image"))
        with pytest.raises(ServingError, match="deadline"):
            caching.run(signatures.BOX_PROMPTS, asked, time.monotonic() - 1)

    def test_features_cannot_be_asked_for(self, exported):
        loaded = Servable(str(exported / "export" / "1"))
        for name in signatures.STAGES:
            with pytest.raises(ServingError, match="not found"):
                loaded.signature(name)
