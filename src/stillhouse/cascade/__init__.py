"""The student answers, the teacher is asked when it must be: deferral scores, risk control and drift.

Pure and without torch: what serves and what trains calls these.
"""
