"""
Faults that nobody picked: mutants of the package by the operators of cosmic-ray, and whether the tests see them (`make mutants`).

`targets` says what is mutated and which tests see to it, `draw` draws the mutants, `reach` finds which tests run which line,
`fork` runs them, `record` keeps what came out and writes the table. What an operator changes is cosmic-ray's; how it is run is not:
`cosmic-ray exec` writes the file and starts a process for each mutant, which imports torch and transformers for seconds before the
first test.
"""
