"""Serving in virtual time: traffic, what a step costs, and what users would have seen. Needs no torch.

The real engine plans every step (queues, blocks, prefix hits, preemptions); a cost model says how long the
step would take. So a minute of traffic on a device one does not have takes a second.
"""
