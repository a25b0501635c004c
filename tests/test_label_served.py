"""`maskx label` with a model elsewhere: the same files as with its export here."""

import pytest

from maskx_tf.inference import segmenter
from tests import commands, harness, serving_toy, tiny

pytestmark = pytest.mark.thorough


def test_a_server_gives_the_bytes_of_the_export(exported, tmp_path, monkeypatch):
    """Over both protocols, in several requests an image; an unknown class and server are named."""
    monkeypatch.setattr(segmenter, "MOST_BOXES", 2)
    generator_boxes = [[5, 6, 30, 25], [1, 1, 8, 8.5], [20, 3, 30, 30], [0, 0, 33, 39]]
    annotations = [
        harness.annotation(1 + i % 2, box, category_id=1 + i % 3, segmentation=[])
        for i, box in enumerate(2 * generator_boxes)
    ]
    names = tiny.VOCABULARY.names[:3]
    data = harness.write_coco(tmp_path, annotations, sizes=((40, 60), (70, 33)), names=names)

    def label(name, *model, annotations=data[0]):
        output = tmp_path / f"{name}.json"
        done = commands.in_process(
            "export.label", f"--annotations={annotations}", f"--images={data[1]}",
            f"--output={output}", *model,
        )  # fmt: skip
        return output.read_bytes() if done.returncode == 0 else done.stderr

    wanted = label("export", f"--saved_model={exported / 'export'}")
    assert b'"mask_source": "maskx_tf"' in wanted
    with serving_toy.serving(exported / "export", "maskx") as (server, _):
        url = f"--url=http://127.0.0.1:{server.rest_api_port}"
        assert label("rest", url) == wanted
        assert label("grpc", f"--grpc=127.0.0.1:{server.port}") == wanted
        (tmp_path / "other").mkdir()
        other = harness.write_coco(
            tmp_path / "other", annotations, sizes=((40, 60), (70, 33)), names=("yak", *names[1:])
        )
        assert "'yak'" in label("unknown", url, annotations=other[0])
        assert "--saved_model" in label("two", url, "--saved_model=x")
        assert "name right" in label("nowhere", url, "--model_name=nowhere")
