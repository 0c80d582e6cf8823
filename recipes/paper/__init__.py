"""The paper's table: its cells, how they run side by side, and what is made of their results."""
