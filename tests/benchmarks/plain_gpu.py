"""The plain loop of someone who knows torch, on a CUDA device: a worker process for each core, pinned memory, channels last, autocast. Its
last line is JSON, which only the benchmark reads.

    python plain_gpu.py MODEL WEIGHTS FOLDER EPOCHS float32|bfloat16 head|all
"""

import json
import os
import sys
import time

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms


def main(model_name, weights, folder, epochs, precision, train):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if model_name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    data = torchvision.datasets.ImageFolder(folder, transform)
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=os.cpu_count(), pin_memory=True, persistent_workers=True)

    model = torchvision.models.resnet18() if model_name == "resnet18" else timm.create_model(model_name, pretrained=False)
    model.load_state_dict(torch.load(weights))
    if train == "head":
        model.requires_grad_(False)
    if model_name == "resnet18":
        model.fc = head = nn.Linear(model.fc.in_features, len(data.classes))
    else:
        model.reset_classifier(len(data.classes))
        head = model.get_classifier()
    model = model.cuda().to(memory_format=torch.channels_last)

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    seconds, losses = [], []
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train(train == "all")
        head.train()
        total, correct = torch.zeros((), device="cuda"), torch.zeros((), device="cuda", dtype=torch.int64)
        for images, labels in loader:
            images = images.cuda(non_blocking=True).to(memory_format=torch.channels_last)
            labels = labels.cuda(non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = model(images)
                loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(images)
            correct += (outputs.argmax(1) == labels).sum()
        losses.append(total.item() / len(data))
        seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f} accuracy {correct.item() / len(data):.4f}", flush=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(json.dumps({"images": len(data), "seconds": seconds, "losses": losses, "trainable_parameters": trained}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
