"""What the guard decides about a request to a served model: who asks, what may leave, how much, for what.

Decisions are pure functions of what they are given; the clock, the store and the wire are the gateway's.
"""
