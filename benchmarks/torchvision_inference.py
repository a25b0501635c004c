"""How long PyTorch takes: torchvision's Mask R-CNN, R-50-FPN, on one image.

    python -m venv .venv-torch && .venv-torch/bin/pip install torch torchvision
    .venv-torch/bin/python benchmarks/torchvision_inference.py 800 1344 5

Height, width and turns; it needs nothing of this project, and this project does not need PyTorch.
The model is that of `benchmarks.inference`: 1,000 proposals, two fully connected layers, 100
detections with masks, random weights. The class scores are spread until there are 100 detections,
so that neither NMS nor the mask head is idle.
"""

import statistics
import sys
import time

import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

DETECTIONS = 100


def random_model(height: int, width: int) -> torch.nn.Module:
    """Mask R-CNN of 80 classes that takes images as they are."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=81,
        min_size=min(height, width),
        max_size=max(height, width),
        box_detections_per_img=DETECTIONS,
    )
    # Masks stay 28 x 28 as ours: pasting them into the image is left out.
    model.transform.postprocess = lambda detections, *_: detections
    return model.eval()


def main() -> None:
    height, width, turns = map(int, sys.argv[1:])
    model, image = random_model(height, width), torch.rand(3, height, width)
    with torch.inference_mode():
        while len(found := model([image])[0]["masks"]) < DETECTIONS:
            model.roi_heads.box_predictor.cls_score.weight *= 1.5
        seconds = []
        for _ in range(turns):
            started = time.perf_counter()
            found = model([image])[0]["masks"]
            seconds.append(time.perf_counter() - started)
    spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(found)} masks: "
        f"{1e3 * statistics.median(seconds):.1f} ms  spread {spread:.0%}"
    )


if __name__ == "__main__":
    main()
