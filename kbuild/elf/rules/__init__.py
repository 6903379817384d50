"""Rules over the init code: read from files, asked of modules, answered with evidence."""
