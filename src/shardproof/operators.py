"""Operators of other packages: what they do to dims, declared by whoever uses them.

```python
shardproof.operators.register("package::scan", "b t h d, h d -> b t h d", reference=scan_in_torch)
```
"""

from shardproof.planner.tracing.declared_operators import register

__all__ = ["register"]
