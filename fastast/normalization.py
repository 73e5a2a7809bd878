"""ImageNet's statistics in 8-bit levels, red, green, blue: what torchvision's pretrained networks expect."""

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
