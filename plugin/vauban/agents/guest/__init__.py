"""What runs inside the sandbox's virtual machine; it imports nothing of vauban."""
