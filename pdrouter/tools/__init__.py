"""What helps people beside the router: nothing that serves imports from here."""
