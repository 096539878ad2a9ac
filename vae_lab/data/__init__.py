"""Images in batches: from memory, read ahead from a disk, or decoded from picture files."""

from .loader import BINARIZE as BINARIZE
from .loader import Batch as Batch
from .loader import Loader as Loader
from .loader import TensorLoader as TensorLoader
from .loader import check_batching as check_batching
