"""A simulated month of a provider's traffic: accounts, their requests, and who of them distils.

SIMULATION. No provider's log is in it. Arrival times follow real clients and the texts are real, but who
asks what, how applications word it and how distillers behave is made up here: docs/simulation.md says which
is which.

    from traffic.people import people, requests
"""
