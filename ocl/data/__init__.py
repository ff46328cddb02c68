"""Datasets: drawn scenes, folders of images, VOC and COCO instances; samples, batches and their order."""

from ocl.data.coco import COCOInstances
from ocl.data.folder import ImageFolder
from ocl.data.memory import InMemory
from ocl.data.sample import Dataset, Sample, collate
from ocl.data.scenes import Scenes
from ocl.data.voc import VOCInstances

__all__ = ["COCOInstances", "Dataset", "ImageFolder", "InMemory", "Sample", "Scenes", "VOCInstances", "collate"]
