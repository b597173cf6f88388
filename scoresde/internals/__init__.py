"""What has nothing to do with diffusion: files, memory, imports."""
