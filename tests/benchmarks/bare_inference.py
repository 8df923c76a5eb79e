"""A bare inference loop over ready tensors, for the ceiling that extraction is measured against. Prints images/s.

    python bare_inference.py MODEL WEIGHTS PRECISION N_IMAGES BATCH

Channels last, inference mode, autocast for bfloat16, the allocator set as xfer sets it; the first batch is left out of the time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import timm
import torch
import torchvision
from material import ready, textile

from xfer.backends.torch.allocator import tune

N_READY_IMAGES = 256  # they are gone round as often as it takes: the loop's cost does not hang on what is in them


def main(model: str, weights: Path, precision: str, n_images: int, batch: int) -> None:
    tune()
    network = torchvision.models.resnet18() if model == "resnet18" else timm.create_model(model, pretrained=False)
    network.load_state_dict(torch.load(weights, weights_only=True))
    if model == "resnet18":
        network.fc = torch.nn.Identity()
    else:
        network.reset_classifier(0)
    network = network.eval().to(memory_format=torch.channels_last)
    files = [file for _, file in textile(max(N_READY_IMAGES, batch))]
    images = torch.cat([ready(file, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) for file in files])
    whole = len(images) // batch * batch
    batches = [part.contiguous(memory_format=torch.channels_last) for part in images[:whole].split(batch)]
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    n_batches = -(-n_images // batch)
    with torch.inference_mode(), autocast:
        network(batches[0])
        start = time.perf_counter()
        for index in range(n_batches):
            network(batches[index % len(batches)])
        seconds = time.perf_counter() - start
    print(n_batches * batch / seconds)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
