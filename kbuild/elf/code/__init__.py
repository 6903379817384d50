"""What init code can do, in which order: takes a module set, gives every way through it, from machine code alone.

It needs no source, no kernel and no symbol of KVM by name. Nothing is run and nothing is guessed: a call that
cannot be resolved is counted, and what it may change is unknown from there on.

  link.py      modules in one address space      values.py    what is known of a value
  loaded.py    a section, relocated              state.py     registers and memory
  tables.py    what the kernel patches           join.py      two states made one
  decode.py    basic blocks                      machine.py   registers, memory, conditions
  patches.py   which patch is there              instructions.py  what each of them does
  graph.py     a function's shape                calls.py     what a call means
  results.py   which registers still matter      targets.py   where a pointer may lead
  inlined.py   functions that are inlined in it
  flow.py      all ways through, and who is told of them
  frames.py    a function that is being run
  runs.py      all runs over a module set        budget.py    what they may cost
  sides.py     two processes for them
  walk.py      one way, without joins            model.py     whether it can be so
  nearness.py  where it leads to what is looked for
  bits.py      which bit is which

Beside it, for a question that needs no ways through: who uses one object, and which parts of it.

  uses.py      references to an object           follow.py    where its address goes, what is read through it
"""
