"""Integer forms of what has no weight: tables, softmax, norms, and the rescaling between grids, on codes in int64 tensors."""
