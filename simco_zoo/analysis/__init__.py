"""The paper's argument as studies that anyone can run; ``simco-zoo analyze`` is the command."""
