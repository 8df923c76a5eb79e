"""The same probe by someone who knows torch: the backbone in eval mode, without gradients, channels last; still in the loop, in float32.

    python plain_careful.py MODEL WEIGHTS FOLDER EPOCHS
"""

import sys

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms


def main(model_name, weights, folder, epochs):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if model_name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    data = torchvision.datasets.ImageFolder(folder, transform)
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)

    backbone = torchvision.models.resnet18() if model_name == "resnet18" else timm.create_model(model_name, pretrained=False)
    backbone.load_state_dict(torch.load(weights))
    if model_name == "resnet18":
        features = backbone.fc.in_features
        backbone.fc = nn.Identity()
    else:
        features = backbone.num_features
        backbone.reset_classifier(0)
    backbone = backbone.eval().to(memory_format=torch.channels_last)
    head = nn.Linear(features, len(data.classes))

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(epochs):
        total, correct = 0.0, 0
        for images, labels in loader:
            with torch.no_grad():
                x = backbone(images.to(memory_format=torch.channels_last))
            outputs = head(x)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
            correct += (outputs.argmax(1) == labels).sum().item()
        print(f"epoch {epoch + 1}: loss {total / len(data):.4f} accuracy {correct / len(data):.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
