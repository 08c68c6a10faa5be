from multiprocessing.sharedctypes import Array as Array
from multiprocessing.sharedctypes import RawArray as RawArray
from multiprocessing.sharedctypes import RawValue as RawValue
from multiprocessing.sharedctypes import Value as Value
from multiprocessing.sharedctypes import copy as copy
from multiprocessing.sharedctypes import synchronized as synchronized

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]
