from .class_labels import require_labels as require_labels
from .listing import find_images as find_images
from .listing import list_unused as list_unused
from .listing import load_datalist as load_datalist
from .splits import choose_abnormal as choose_abnormal
from .splits import normals_of as normals_of
from .splits import split_normals as split_normals
from .unused import Unused as Unused
