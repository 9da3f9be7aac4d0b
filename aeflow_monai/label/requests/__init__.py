"""What a server lets through, and how it answers."""
