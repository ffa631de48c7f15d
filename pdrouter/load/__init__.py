"""What is known of the pods' condition."""
