"""The command line: parsing, resuming, the live panel, the check of the machine."""
