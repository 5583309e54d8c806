"""Tasks: what models learn, and the only place that knows it."""

from kt.tasks import classification as classification  # its import defines the task
from kt.tasks import saliency as saliency  # and so do these
from kt.tasks import segmentation as segmentation
