from multiprocessing import managers as _stock
from multiprocessing.managers import BaseManager as BaseManager
from multiprocessing.managers import BaseProxy as BaseProxy
from multiprocessing.managers import DictProxy as DictProxy
from multiprocessing.managers import ListProxy as ListProxy
from multiprocessing.managers import Namespace as Namespace
from multiprocessing.managers import SharedMemoryManager as SharedMemoryManager
from multiprocessing.managers import Token as Token
from multiprocessing.managers import ValueProxy as ValueProxy

__all__ = ["BaseManager", "SyncManager", "BaseProxy", "Token", "SharedMemoryManager"]

class SyncManager(_stock.SyncManager): ...

def Manager(ctx: object = None) -> SyncManager: ...
