"""What programs need of the machine: flags and exit codes, signals, files, progress."""
