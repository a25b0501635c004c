"""Versions on disk: found, swapped, left out when broken, drained before they go."""

import pathlib
import threading

import pytest
from tensorflow_serving.config import model_server_config_pb2

from export.serving import model_config, versions
from export.serving.errors import Code, ServingError
from export.serving.model_config import ConfigError
from export.serving.poller import Poller
from export.serving.versions import Model, Status


class Fake:
    """A servable that records what happens to it."""

    def __init__(self, path, log):
        self.number, self._log = int(path.rsplit("/", 1)[1]), log
        if "broken" in pathlib.Path(path, "saved_model.pb").read_text():
            raise OSError("damaged")
        log.append(f"load {self.number}")

    def warm_up(self):
        self._log.append(f"warm {self.number}")
        return 1

    def close(self):
        self._log.append(f"close {self.number}")


def add(root, number, content="good"):
    (root / str(number)).mkdir(exist_ok=True)
    (root / str(number) / "saved_model.pb").write_text(content)


def remove(root, number):
    (root / str(number) / "saved_model.pb").unlink()


@pytest.fixture
def log():
    return []


def make(root, log, **fields):
    config = model_server_config_pb2.ModelConfig(name="m", base_path=str(root), **fields)
    return Model(config, lambda path: Fake(path, log), lambda newest: log.append(f"now {newest}"))


def states(model):
    return {status.version: Status.State.Name(status.state) for status in model.status()}


def served(model, *which):
    with model.acquire(*which) as (number, servable):
        assert servable.number == number
        return number


def test_a_new_version_is_ready_before_the_old_one_goes(tmp_path, log):
    model = make(tmp_path, log)
    add(tmp_path, 1)
    model.poll()
    assert served(model) == 1 and states(model) == {1: "AVAILABLE"}
    add(tmp_path, 10)
    add(tmp_path, 9)
    model.poll()
    assert served(model) == 10
    assert states(model) == {10: "AVAILABLE", 1: "END"}
    assert log == ["load 1", "warm 1", "now 1", "load 10", "warm 10", "now 10", "close 1", "now 10"]
    model.close()
    assert log[-2:] == ["close 10", "now 0"]
    assert not model.ready


def test_a_version_counts_when_it_is_complete(tmp_path):
    add(tmp_path, 2)
    for name in ("1", "x", "-3", "4.0", ".5", "٣", "9" * 30):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("no directory")
    (tmp_path / "x" / "saved_model.pb").write_text("")
    assert list(versions.find_versions(str(tmp_path))) == [2]
    assert versions.find_versions(str(tmp_path / "missing")) == {}


def test_a_broken_version_leaves_the_old_one(tmp_path, log):
    model = make(tmp_path, log)
    add(tmp_path, 1)
    model.poll()
    add(tmp_path, 2, "broken")
    model.poll()
    model.poll()
    assert served(model) == 1
    broken, good = model.status()
    assert (broken.version, broken.state, good.state) == (2, Status.END, Status.AVAILABLE)
    assert broken.status.error_code == 2  # UNKNOWN
    assert "damaged" in broken.status.error_message
    with pytest.raises(ServingError, match="Specific"):
        served(model, 2)
    add(tmp_path, 2, "repaired")
    model.poll()
    assert served(model) == 2
    assert states(model) == {2: "AVAILABLE", 1: "END"}


def test_a_version_that_was_still_being_copied_is_tried_again(tmp_path, log):
    """Its `saved_model.pb` comes before its variables, and does not change any more."""
    config = model_server_config_pb2.ModelConfig(name="m", base_path=str(tmp_path))
    tries = []

    def load(path):
        tries.append(path)
        if not pathlib.Path(path, "variables", "variables.index").read_text():
            raise OSError("damaged")
        return Fake(path, log)

    model = Model(config, load)
    add(tmp_path, 1)
    for number_of_tries in (1, 1):  # for nothing has changed
        model.poll()
        assert not model.ready and len(tries) == number_of_tries
    index = tmp_path / "1" / "variables" / "variables.index"
    index.parent.mkdir()
    index.write_text("")
    model.poll()
    model.poll()
    assert not model.ready and len(tries) == 2
    index.write_text("all of it")
    model.poll()
    assert served(model) == 1


def test_a_version_that_grows_while_it_is_tried_does_not_hold_the_others_up(tmp_path, log):
    config = model_server_config_pb2.ModelConfig(name="m", base_path=str(tmp_path))

    def load(path):
        servable = Fake(path, log)
        if servable.number == 2:
            with open(pathlib.Path(path, "variables"), "a") as file:
                file.write("more")
            raise OSError("damaged")
        return servable

    model = Model(config, load)
    add(tmp_path, 1)
    add(tmp_path, 2)
    for tries in (1, 2):
        model.poll()
        assert served(model) == 1 and log.count("load 2") == tries


def test_with_a_broken_newest_version_the_one_before_is_started(tmp_path, log):
    add(tmp_path, 1)
    add(tmp_path, 2, "broken")
    model = make(tmp_path, log)
    model.poll()
    assert served(model) == 1


def test_going_back_by_removing_a_version(tmp_path, log):
    model = make(tmp_path, log)
    add(tmp_path, 1)
    add(tmp_path, 2)
    model.poll()
    remove(tmp_path, 2)
    model.poll()
    assert served(model) == 1
    assert log.index("load 1") < log.index("close 2")
    remove(tmp_path, 1)
    model.poll()
    assert served(model) == 1  # better than nothing


def test_an_old_version_is_closed_after_its_last_request(tmp_path, log):
    model = make(tmp_path, log)
    add(tmp_path, 1)
    model.poll()
    with model.acquire() as (number, _):
        add(tmp_path, 2)
        poll = threading.Thread(target=model.poll)
        poll.start()
        while "UNLOADING" not in states(model).values():
            pass
        assert number == 1 and "close 1" not in log
        assert served(model) == 2  # others go on
        with pytest.raises(ServingError, match="not found"):
            served(model, 1)
    poll.join()
    assert "close 1" in log


def test_policies_and_labels(tmp_path, log):
    for number in (1, 2, 3):
        add(tmp_path, number)
    policy = {"latest": {"num_versions": 2}}
    labels = {"stable": 2, "gone": 1}
    model = make(tmp_path, log, model_version_policy=policy, version_labels=labels)
    model.poll()
    assert states(model) == {3: "AVAILABLE", 2: "AVAILABLE"}
    assert served(model) == 3 and served(model, None, "stable") == 2
    assert [status.version for status in model.status(None, "stable")] == [2]
    for label, code in (("gone", Code.NOT_FOUND), ("x", Code.INVALID_ARGUMENT)):
        with pytest.raises(ServingError) as caught:
            served(model, None, label)
        assert caught.value.code is code
    for policy, wanted in (({"all": {}}, {1, 2, 3}), ({"specific": {"versions": [1, 7]}}, {1})):
        model = make(tmp_path, log, model_version_policy=policy)
        model.poll()
        assert states(model).keys() == wanted


def test_not_found(tmp_path, log):
    model = make(tmp_path, log)
    model.poll()
    for function in (model.status, lambda: served(model), lambda: served(model, 4)):
        with pytest.raises(ServingError) as caught:
            function()
        assert caught.value.code is Code.NOT_FOUND


def test_a_directory_without_versions_is_told_once(tmp_path, log, caplog):
    model = make(tmp_path, log)
    for _ in range(3):
        model.poll()
    assert caplog.text.count(f"m: nothing to serve under {tmp_path} yet") == 1
    add(tmp_path, 1)
    model.poll()
    remove(tmp_path, 1)
    model.poll()
    assert caplog.text.count("nothing to serve") == 2


def test_stopping_does_not_wait_for_versions_not_yet_begun(tmp_path, log):
    for number in range(1, 6):
        add(tmp_path, number)
    model = make(tmp_path, log, model_version_policy={"all": {}})
    stop = threading.Event()
    model.poll(stopped=lambda: stop.is_set() or bool(log))
    assert [entry for entry in log if entry.startswith("load")] == ["load 5"]
    stop.set()
    model.poll(stopped=stop.is_set)
    assert states(model) == {5: "AVAILABLE"}


def test_the_poller_outlives_an_error(tmp_path, log):
    model, rounds = make(tmp_path, log), []
    poll, twice = model.poll, threading.Event()

    def fail_once(stopped):
        rounds.append(1)
        if len(rounds) == 1:
            raise RuntimeError("disk trouble")
        poll(stopped)
        twice.set()

    model.poll = fail_once
    add(tmp_path, 1)
    poller = Poller([model], 0.01)
    poller.start()
    assert twice.wait(10)
    poller.close()
    assert served(model) == 1


def test_configuration_file(tmp_path):
    (tmp_path / "models").mkdir()
    text = """model_config_list { config {
      name: "a" base_path: "%s" model_platform: "tensorflow"
      model_version_policy { all {} } version_labels { key: "canary" value: 4 }
    } }"""
    path = tmp_path / "models.config"
    path.write_text(text % (tmp_path / "models"))
    (config,) = model_config.read(str(path))
    assert config.name == "a" and dict(config.version_labels) == {"canary": 4}
    for content, match in (
        (text % "/nowhere", "/nowhere is not a directory"),
        ("model_config_list {", "models.config: "),
        ("", "needs models"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=match):
            model_config.read(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        model_config.read(str(tmp_path / "none"))


def test_flags_for_one_model(tmp_path):
    assert model_config.single("m", str(tmp_path))[0].base_path == str(tmp_path)
    with pytest.raises(ConfigError, match="--model_base_path=DIRECTORY is needed"):
        model_config.single("m", "")
    with pytest.raises(ConfigError, match="cannot be a model's name"):
        model_config.single("a/b", str(tmp_path))
    add(tmp_path, 3)
    with pytest.raises(ConfigError, match=f"one version; give the directory above it, {tmp_path}"):
        model_config.single("m", str(tmp_path / "3"))
