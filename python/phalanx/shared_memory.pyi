from multiprocessing import shared_memory as _stock
from multiprocessing.shared_memory import ShareableList as ShareableList

__all__ = ["SharedMemory", "ShareableList"]

class SharedMemory(_stock.SharedMemory):
    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True) -> None: ...
