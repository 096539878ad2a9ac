"""Data in batches: from memory, read ahead from a disk, or decoded from picture files."""

from .augment import Augment as Augment
from .loader import Batch as Batch
from .loader import Loader as Loader
from .loader import TensorLoader as TensorLoader
from .loader import check_batch_size as check_batch_size
from .prepare import BINARIZE as BINARIZE
from .prepare import Pixels as Pixels
from .prepare import Prepare as Prepare
