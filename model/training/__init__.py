"""How the embedded checkpoint is made from nothing: its world, its text, its towers, its flow, its scores."""
