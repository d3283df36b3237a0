"""How many connections a gateway holds, and what a storm of them does to those that are open.

`make scale` runs it in full (docs/scaling.md has the figures); `test_scale.py` runs a small one.
"""
