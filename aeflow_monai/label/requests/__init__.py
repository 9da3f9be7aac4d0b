"""Request handling of the server: filtering, validation and answers."""
