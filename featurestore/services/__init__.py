"""The verbs: registration, materialization, historical and online reads. They know ports only."""
