"""Reports: curves, pictures and the page that shows runs side by side."""
