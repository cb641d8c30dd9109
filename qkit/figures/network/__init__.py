"""The network as a picture: blocks by module path, a layered layout, figures as colours, SVG, and Model Explorer's overlay.

All of it works on plain names and numbers: what a graph and its measurements are is the business of those who fill it.
"""
