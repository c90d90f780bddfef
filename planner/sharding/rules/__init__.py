"""The rules, one file a family. A rule is a function of one op's shapes and arguments."""
