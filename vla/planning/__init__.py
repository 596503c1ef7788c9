"""What a run will take, told before it starts: memory, work and speed. See `plan`."""
