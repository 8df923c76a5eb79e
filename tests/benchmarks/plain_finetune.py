"""The plain script that people write for fine-tuning: every layer trains. Its last line is JSON, which only the benchmark reads.

    python plain_finetune.py MODEL WEIGHTS FOLDER EPOCHS [float32 | bfloat16]
"""

import json
import sys
import time

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms


def main(model_name, weights, folder, epochs, precision="float32"):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if model_name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    data = torchvision.datasets.ImageFolder(folder, transform)
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2)

    model = torchvision.models.resnet18() if model_name == "resnet18" else timm.create_model(model_name, pretrained=False)
    model.load_state_dict(torch.load(weights))
    if model_name == "resnet18":
        model.fc = nn.Linear(model.fc.in_features, len(data.classes))
    else:
        model.reset_classifier(len(data.classes))

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    seconds, losses = [], []
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        total, correct = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = model(images)
                loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
            correct += (outputs.argmax(1) == labels).sum().item()
        seconds.append(time.perf_counter() - start)
        losses.append(total / len(data))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f} accuracy {correct / len(data):.4f}", flush=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(json.dumps({"images": len(data), "seconds": seconds, "losses": losses, "trainable_parameters": trained}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
