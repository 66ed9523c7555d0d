r"""A training step of torchvision's `keypointrcnn_resnet50_fpn` on this machine's GPU, beside `gpu_step_run.py`.

  python gpu_step_torchvision.py --batch_sizes=2,8,16 --precision=bfloat16

Needs torch and torchvision, none of this project. A step is losses, gradients and an update by SGD with momentum, from random
weights, with C3 to C5 trained, on images whose size torchvision keeps.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision


def training_step(
    batch_size: int, height: int, width: int, persons: int, device: str, dtype: torch.dtype
) -> Callable[[], float]:
    """A function that takes a step and returns its loss."""
    torch.manual_seed(0)
    model = torchvision.models.detection.keypointrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        trainable_backbone_layers=3,
        min_size=min(height, width),
        max_size=max(height, width),
    )
    model.train().to(device)
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("layer2", "layer3", "layer4")))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    images = list(torch.rand(batch_size, 3, height, width, device=device))
    targets = []
    for _ in range(batch_size):
        low = 0.6 * torch.rand(persons, 2)
        high = low + 0.1 + 0.3 * torch.rand(persons, 2)
        points = low[:, None] + torch.rand(persons, 17, 2) * (high - low)[:, None]
        scale = torch.tensor([width, height])
        keypoints = torch.cat([points * scale, torch.full((persons, 17, 1), 2.0)], dim=2)
        target = {
            "boxes": torch.cat([low * scale, high * scale], dim=1),
            "labels": torch.ones(persons, dtype=torch.int64),
            "keypoints": keypoints,
        }
        targets.append({name: value.to(device) for name, value in target.items()})

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="2,8,16", help="Images in a step.")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="Of autocast.")
    parser.add_argument("--height", type=int, default=800, help="Of the images, in pixels.")
    parser.add_argument("--width", type=int, default=1088, help="Of the images, in pixels.")
    parser.add_argument("--persons", type=int, default=10, help="People in each image.")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long each batch size is measured.")
    flags = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, torchvision {torchvision.__version__}, {flags.precision}", flush=True)
    for batch_size in map(int, flags.batch_sizes.split(",")):
        dtype = getattr(torch, flags.precision)
        step = training_step(batch_size, flags.height, flags.width, flags.persons, device, dtype)
        for _ in range(3):
            loss = step()
        times: list[float] = []
        started = time.monotonic()
        while len(times) < 3 or time.monotonic() - started < flags.seconds:
            before = time.monotonic()
            loss = step()  # its value is waited for
            times.append(time.monotonic() - before)
        median = statistics.median(times)
        memory = f"; peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else ""
        print(
            f"torchvision-training-{batch_size}: loss {loss:.4g}; {1000 * median:.1f} ms, {1 / median:.2f} steps/s, "
            f"{batch_size / median:.2f} images/s{memory}",
            flush=True,
        )


if __name__ == "__main__":
    main()
