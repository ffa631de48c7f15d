"""What the doctor looks for, a module for each theme."""
