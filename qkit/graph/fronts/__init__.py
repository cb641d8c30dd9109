"""Ways in: a module through torch.export, and through torch.fx where that fails; both end in the normal form."""
