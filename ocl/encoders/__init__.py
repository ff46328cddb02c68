"""Encoders: images to tokens."""

from ocl.encoders.cnn import CNN
from ocl.encoders.pretrained import PretrainedEncoder
from ocl.encoders.published import DINO, MAE, DINOv2, DINOv3
from ocl.encoders.resnet import ResNet
from ocl.encoders.vit import ViT

__all__ = ["CNN", "DINO", "MAE", "DINOv2", "DINOv3", "PretrainedEncoder", "ResNet", "ViT"]
