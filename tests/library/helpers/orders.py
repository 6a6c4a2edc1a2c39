"""A contract with a column of every kind."""

from typing import Any

SHOP: dict[str, Any] = {
    "name": "orders",
    "columns": [
        {"name": "order", "type": "string", "role": "id"},
        {"name": "placed", "type": "datetime", "role": "time"},
        {"name": "region", "type": "string", "categories": ["north", "south", "west"], "max_unknown_share": 0.1},
        {"name": "kind", "type": "string", "categories": ["new", "old"]},
        {"name": "channel", "type": "string", "nullable": True},
        {"name": "amount", "type": "float", "nullable": True, "range": [0, 1000], "unit": "EUR"},
        {"name": "weight", "type": "float", "nullable": True},
        {"name": "items", "type": "integer", "range": [1, 50]},
        {"name": "gift", "type": "boolean", "nullable": True},
        {"name": "buyer", "type": "string", "role": "ignored", "personal": True, "nullable": True},
        {"name": "returned", "type": "boolean", "role": "target"},
    ],
}
