"""What `xfer run` does for a probe, written by hand: features of train/ and val/ once, then the head's epochs with validation after each.

python plain_features_once.py MODEL WEIGHTS FOLDER EPOCHS
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from xfer.backends.torch.allocator import tune


def decoded(path):
    with Image.open(path) as image:
        image = image.convert("RGB")
        width, height = image.size
        scale = 256 / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return np.asarray(image.crop((left, top, left + 224, top + 224)))


def main(model_name, weights, folder, epochs):
    tune()
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if model_name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    network = torchvision.models.resnet18() if model_name == "resnet18" else timm.create_model(model_name, pretrained=False)
    network.load_state_dict(torch.load(weights))
    if model_name == "resnet18":
        width, network.fc = network.fc.in_features, nn.Identity()
    else:
        width = network.num_features
        network.reset_classifier(0)
    network = network.eval().to(memory_format=torch.channels_last)
    mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    features, labels = {}, {}
    for split in ("train", "val"):
        data = torchvision.datasets.ImageFolder(os.path.join(folder, split))
        paths = [path for path, _ in data.samples]
        labels[split] = torch.tensor(data.targets)
        parts = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
            images = pool.map(decoded, paths)
            for first in range(0, len(paths), 64):
                batch = np.stack([image for _, image in zip(paths[first : first + 64], images, strict=False)])
                x = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
                parts.append(network(x.contiguous(memory_format=torch.channels_last)))
        features[split] = torch.cat(parts).clone()

    head = nn.Linear(width, len(data.classes))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(labels["train"])).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features["train"][chosen]), labels["train"][chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (head(features["val"]).argmax(1) == labels["val"]).float().mean().item()
        print(f"epoch {epoch + 1}: accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
