from typing import Any

# joblib has no types of its own.
def __getattr__(name: str) -> Any: ...
