"""What the machine gives us: durable files, local and remote storage, worker processes, and a terminal."""
