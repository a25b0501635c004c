"""TensorBoard's HParams tab shows options and scores, read back by its own backend."""

import contextlib

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.system.interruption import Interrupted
from maskx_tf.training import tensorboard_hparams


def groups_of(directory, request):
    """What the tab asks for."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(directory))
    context_ = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    handler = list_session_groups.Handler(context.RequestContext(), context_, "", request)
    return handler.run().session_groups


def shown(directory):
    """[(options, scores)] of the tab, of runs that have ended well."""
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    found = []
    for group in groups_of(directory, request):
        options = {k: getattr(v, v.WhichOneof("kind")) for k, v in group.hparams.items()}
        found.append((options, {v.name.tag: v.value for v in group.metric_values}))
    return found


def test_options_and_scores_of_every_run(tmp_path):
    for seed in (0, 1):
        options = Config(seed=seed, lr_steps=(5, 8), model_dir="x")
        scores = {"mask/B/AP": 0.2 + seed}
        tensorboard_hparams.write(
            tmp_path / str(seed), tensorboard_hparams.of_config(options), scores
        )
    found = sorted(shown(tmp_path), key=lambda item: item[0]["seed"])
    assert len(found) == 2
    for seed, (options, scores) in enumerate(found):
        assert options["seed"] == seed and options["lr_steps"] == "5,8"
        assert options["mask_mlp"] is True and "model_dir" not in options
        assert scores["mask/B/AP"] == pytest.approx(0.2 + seed)


def statuses(directory):
    """How each run below `directory` ended, as of the tab."""
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=api_pb2.Status.values()
    )
    groups = groups_of(directory, request)
    return [session.status for group in groups for session in group.sessions]


def test_a_resumed_run_is_renewed(tmp_path):
    for steps in (7, 9):
        with tensorboard_hparams.session(Config(model_dir=str(tmp_path), train_steps=steps)):
            assert statuses(tmp_path) == [api_pb2.STATUS_UNKNOWN]
    ((found, _),) = shown(tmp_path)
    assert found["train_steps"] == 9


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "SUCCESS"),
        (UserError("a loss is not finite"), "FAILURE"),
        (Interrupted(15), "UNKNOWN"),
    ],
)
def test_the_status_is_how_it_ended(tmp_path, error, status):
    with (
        pytest.raises(type(error)) if error else contextlib.nullcontext(),
        tensorboard_hparams.session(Config(model_dir=str(tmp_path))),
    ):
        if error:
            raise error
    assert statuses(tmp_path) == [api_pb2.Status.Value(f"STATUS_{status}")]
