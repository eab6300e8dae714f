"""What is known about models: names, memory, store. Pure."""
