"""A careful plain script that trains a network's last stage: what lies below has no gradient, is in eval mode and runs without a graph; it
still runs in the loop, and the files are still decoded, every epoch. Its last line is JSON, which only the benchmark reads.

    python plain_last_stage.py MODEL WEIGHTS FOLDER EPOCHS
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


def main(model_name, weights, folder, epochs):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if model_name == "resnet18" else ([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    data = torchvision.datasets.ImageFolder(folder, transform)
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)

    model = torchvision.models.resnet18() if model_name == "resnet18" else timm.create_model(model_name, pretrained=False)
    model.load_state_dict(torch.load(weights))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.eval()
    if model_name == "resnet18":
        model.fc = nn.Linear(model.fc.in_features, len(data.classes))
        below = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3)
        trained = nn.Sequential(model.layer4, model.avgpool, nn.Flatten(), model.fc)
    else:
        model.reset_classifier(len(data.classes))
        below = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:5])
        trained = nn.Sequential(*model.blocks[5:], model.conv_head, model.bn2, model.global_pool, model.classifier)
    for parameter in trained.parameters():
        parameter.requires_grad = True
    model.to(memory_format=torch.channels_last)

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.001, momentum=0.9)
    seconds, losses = [], []
    for epoch in range(epochs):
        start = time.perf_counter()
        trained.train()
        total, correct = 0.0, 0
        for images, labels in loader:
            with torch.no_grad():
                x = below(images.to(memory_format=torch.channels_last))
            outputs = trained(x)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
            correct += (outputs.argmax(1) == labels).sum().item()
        seconds.append(time.perf_counter() - start)
        losses.append(total / len(data))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f} accuracy {correct / len(data):.4f}", flush=True)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(json.dumps({"images": len(data), "seconds": seconds, "losses": losses, "trainable_parameters": n_trained}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
