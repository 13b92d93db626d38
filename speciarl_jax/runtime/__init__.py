"""What any JAX program needs: devices, processes, checkpoints, files, clocks."""
