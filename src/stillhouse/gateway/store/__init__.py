"""What the gateway keeps: counts, accounts, events. SQL and Redis are spoken only here."""
