"""What init acquires, and whether exit and each error path behind it release it.

Takes a module set and a table of resources (`profiles/rules/resources.toml`), gives findings: what stays held, with
the way. No function of the kernel is looked into: what acquires and what releases is in the table.

  things.py    what may be acquired                  ledger.py    what is held, in each state
  witness.py   a way on which something stays held   find.py      all modules of a set, asked and told
"""
