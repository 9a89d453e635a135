"""The result tables: schema, store, queries, leaderboards and reports. Needs no torch."""
