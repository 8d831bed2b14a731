"""The subcommands that are not Lightning's: one file each, with a function `run(arguments)`."""
